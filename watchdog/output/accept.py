"""Choose the form of answer that the caller prefers."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Sequence

import msgspec

from ..errors import AnswerNotAvailable, BadInput, quoted
from ..system.pattern import pattern
from ..workspace.outputs import Output
from .media_type import BYTES_TYPE, JSON_TYPE, PLAIN_TYPE, ZIP_TYPE, guessed_type

# The type of a stream of events. It is not among the offers: the caller must ask for it before the script runs.
_STREAM = ("text", "event-stream")
_NAMED_FILES = 5
_LONGEST_KEPT = 256  # in characters; if a header is longer, its meaning is not kept for the next call


class AnswerForm(enum.Enum):
    """The forms in which outputs are sent. The values are those of ``?output=``."""

    BASE64 = "base64"
    RAW = "raw"
    ZIP = "zip"
    JSON = "json"
    EVENTS = "events"


class Offer(msgspec.Struct, frozen=True):
    """One form in which the outputs can be sent, and its media type without parameters."""

    form: AnswerForm
    media_type: str


_BASE64_OFFER = Offer(AnswerForm.BASE64, PLAIN_TYPE)  # always one of the offers


class _Range(msgspec.Struct, frozen=True):
    """One media range of ``Accept``, in lower case, with its weight. Parameters of the type have no effect."""

    type: str
    subtype: str
    quality: float

    @property
    def specificity(self) -> int:
        return (self.type != "*") + (self.subtype != "*")

    def includes(self, media_type: str) -> bool:
        own_type, _, own_subtype = media_type.partition("/")
        return self.type in ("*", own_type) and self.subtype in ("*", own_subtype)


class AnswerPreference(msgspec.Struct, frozen=True):
    """The wishes of the caller, as far as they are known before the script has run."""

    form: AnswerForm | None
    accept: str = ""
    ranges: tuple[_Range, ...] = ()

    def resolve(self, outputs: Sequence[Output], printed_type: str = PLAIN_TYPE) -> Offer:
        """Choose one of the forms of these outputs. If there are no outputs, choose a form of the printed text or data.

        Raises:
            AnswerNotAvailable: the caller accepts none of these forms.
        """
        if self.form is AnswerForm.BASE64:
            return _BASE64_OFFER
        offers = _offers(outputs, printed_type)
        if self.form is not None:
            for offer in offers:
                if offer.form is self.form:
                    return offer
            raise AnswerNotAvailable(_not_available(f"?output={self.form.value}", outputs, printed_type, offers))
        any_quality = max((r.quality for r in self.ranges if r.specificity == 0), default=0.0)
        best, best_rank = None, (0.0, 0)
        for offer in offers:
            quality, specificity = self._weight(offer.media_type)
            if specificity == 2 and _means_another_form(offer, offers):
                continue
            if quality <= any_quality:
                # Many clients send types and `*/*` with the same weight by default, as axios does: "application/json,
                # text/plain, */*". Their users do not ask for a type, so the order of the offers decides.
                specificity = 0
            if quality > 0 and (quality, specificity) > best_rank:
                best, best_rank = offer, (quality, specificity)
        if best is None:
            raise AnswerNotAvailable(_not_available(f"Accept: {self.accept}", outputs, printed_type, offers))
        return best

    def _weight(self, media_type: str) -> tuple[float, int]:
        """Return the weight and the specificity of the most specific range that includes a type (RFC 9110, 12.5.1)."""
        fitting = [(r.specificity, r.quality) for r in self.ranges if r.includes(media_type)]
        specificity, quality = max(fitting, default=(0, 0.0))
        return quality, specificity


_BASE64_PREFERENCE = AnswerPreference(AnswerForm.BASE64)
# These patterns have atomic groups instead of possessive groups, which CPython 3.11.2 (in Debian 12) matches wrongly.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_PARAMETER = pattern(rf'({_TOKEN})[ \t]*+=[ \t]*+({_TOKEN}|"(?>(?:[^"\\]|\\.)*)")')
_MEDIA_RANGE = pattern(
    rf"[ \t]*+({_TOKEN})(?>(?:/({_TOKEN}))?)((?>(?:[ \t]*+;[ \t]*+(?>(?:{_PARAMETER.pattern})?))*))[ \t]*+(?:,|\Z)"
)
_QUALITY = pattern(r"(?:0?\.\d+|0\.?|1(?:\.0*)?)\Z", re.ASCII)
_EMPTY_ELEMENT = pattern(r"[ \t]*+,")


def choose_form(accept: str | None, output_param: str | None) -> AnswerPreference:
    """Return what the caller wants, from all ``Accept`` headers (joined by commas) and ``?output=``.

    ``?output=`` overrides ``Accept``. A missing ``Accept``, ``*/*`` and ``text/plain`` mean base64. ``application/zip``
    and ``application/json`` mean those forms, even if the only output is itself such a file. ``text/event-stream``
    means a stream of events, unless another type has a greater weight. Any other type means the bytes of the only
    output, if the output has that type or the type is ``application/octet-stream``. The range with the greatest weight
    wins. If weights are equal, the more specific range wins. Types with no more weight than a ``*/*`` in the same
    header count as ``*/*``.

    Raises:
        BadInput: ``?output=`` is not one of the forms, or ``Accept`` is malformed.
        AnswerNotAvailable: ``Accept`` refuses everything.
    """
    if output_param is not None:
        try:
            return AnswerPreference(AnswerForm(output_param.lower()))
        except ValueError:
            known = ", ".join(form.value for form in AnswerForm)
            raise BadInput(f"?output={quoted(output_param)} is not known; it may be one of {known}") from None
    if accept is None or accept == "*/*" or not accept.strip(" \t,"):
        return _BASE64_PREFERENCE
    return _preference_of(accept) if len(accept) <= _LONGEST_KEPT else _preference_of.__wrapped__(accept)


@functools.lru_cache(maxsize=64)
def _preference_of(accept: str) -> AnswerPreference:
    ranges = []
    at = 0
    while at < len(accept):
        if empty := _EMPTY_ELEMENT.match(accept, at):
            at = empty.end()
            continue
        if not accept[at:].strip(" \t"):
            break
        found = _MEDIA_RANGE.match(accept, at)
        if found is None:
            raise BadInput(_malformed_accept(accept, at))
        type_, subtype = found[1].lower(), (found[2] or "").lower()
        if type_ == "*" and not subtype:
            # Java's HttpURLConnection sends "*; q=.2" by default.
            subtype = "*"
        if not subtype or (type_ == "*" and subtype != "*"):
            raise BadInput(_malformed_accept(accept, at))
        quality = 1.0
        for name, value in _PARAMETER.findall(found[3]):
            if name in ("q", "Q"):
                if not _QUALITY.match(value):
                    raise BadInput(_malformed_accept(accept, at))
                quality = float(value)
        ranges.append(_Range(type_, subtype, quality))
        at = found.end()
    if not any(r.quality > 0 for r in ranges):
        raise AnswerNotAvailable(
            f"the Accept header {quoted(accept)} refuses every form of answer; accept at least one of "
            f"{PLAIN_TYPE} (base64), {BYTES_TYPE} (raw), {ZIP_TYPE}, {JSON_TYPE}"
        )
    most = max(r.quality for r in ranges)
    if any((r.type, r.subtype) == _STREAM and r.quality == most for r in ranges):
        return AnswerPreference(AnswerForm.EVENTS)
    return AnswerPreference(None, accept, tuple(ranges))


def _malformed_accept(accept: str, at: int) -> str:
    return (
        f"the Accept header is malformed at {accept[at : at + 40].strip()!r}; it is a list such as "
        f"'{ZIP_TYPE}, {PLAIN_TYPE};q=0.5' with weights from 0 to 1"
    )


def _offers(outputs: Sequence[Output], printed_type: str) -> list[Offer]:
    """Return the forms of these outputs. The server prefers the first ones."""
    if len(outputs) > 1:
        return [
            _BASE64_OFFER,
            Offer(AnswerForm.ZIP, ZIP_TYPE),
            Offer(AnswerForm.JSON, JSON_TYPE),
        ]
    own_type = guessed_type(outputs[0].name) if outputs else printed_type
    offers = [_BASE64_OFFER, Offer(AnswerForm.RAW, own_type), Offer(AnswerForm.RAW, BYTES_TYPE)]
    if outputs:
        offers.append(Offer(AnswerForm.ZIP, ZIP_TYPE))
    return [*offers, Offer(AnswerForm.JSON, JSON_TYPE)]


def _means_another_form(offer: Offer, offers: list[Offer]) -> bool:
    """Return whether a caller that names the type of this offer wants another form than the raw bytes.

    If the forms are offered, ``text/plain`` means base64, ``application/zip`` means ZIP, and ``application/json`` means
    JSON.
    """
    if offer.form is not AnswerForm.RAW or offer.media_type not in (PLAIN_TYPE, ZIP_TYPE, JSON_TYPE):
        return False
    return any(other.form is not AnswerForm.RAW and other.media_type == offer.media_type for other in offers)


def _not_available(wish: str, outputs: Sequence[Output], printed_type: str, offers: list[Offer]) -> str:
    if not outputs:
        there = f"no file in TMP_OUTPUT_DIR, only its stdout, of type {printed_type}"
    elif len(outputs) == 1:
        there = f"one file, {outputs[0].name!r}, of type {guessed_type(outputs[0].name)}"
    else:
        names = ", ".join(repr(output.name) for output in outputs[:_NAMED_FILES])
        there = f"{len(outputs)} files: {names}{', …' if len(outputs) > _NAMED_FILES else ''}"
    by_form: dict[AnswerForm, list[str]] = {}
    for offer in offers:
        types = by_form.setdefault(offer.form, [])
        # Do not advise a type that would give another form.
        if offer.media_type not in types and not _means_another_form(offer, offers):
            types.append(offer.media_type)
    ways = "; ".join(f"{' or '.join(types)} (?output={form.value})" for form, types in by_form.items())
    return f"{wish} cannot be answered, because the script left {there}. Accept one of these: {ways}"
