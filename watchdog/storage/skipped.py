"""Log the objects of an event that are not processed, and explain them to the sender."""

from __future__ import annotations

from ..logs.setup import get_logger
from ..logs.text import printable
from .envelope import Notice
from .stored_object import StoredObject

log = get_logger("storage")

# An event may have thousands of records; the log and the sender get the first ones and a count.
_MOST_LOGGED = 100
_MOST_EXPLAINED = 3
# The sender chooses the names, which may have any length.
_MOST_CHARACTERS = 300


class Skipped:
    """The objects of one event that are not processed, and the reasons."""

    def __init__(self, call_id: str, *, is_job: bool) -> None:
        self._call_id = call_id
        self._is_job = is_job
        self._not_new: list[tuple[StoredObject, str]] = []
        self._unusable: list[tuple[StoredObject, str]] = []
        self._not_covered: list[StoredObject] = []
        self._notices: tuple[Notice, ...] = ()

    def not_new(self, stored: StoredObject, why: str) -> None:
        """Note an object that is not new. ``why``: its :attr:`StoredObject.why_not_new`."""
        self._not_new.append((stored, why))

    def unusable(self, stored: StoredObject, why: str) -> None:
        """Note a record that cannot be processed. ``why``: see :meth:`Locator.why_unusable`."""
        self._unusable.append((stored, why))

    def not_covered(self, stored: StoredObject) -> None:
        """Note an object that no ``input`` of the service definition covers."""
        self._not_covered.append(stored)

    def notices(self, notices: tuple[Notice, ...]) -> None:
        """Note the messages of the sender that report no object."""
        self._notices = notices

    def log(self) -> None:
        """Log each notice, each object that is not new and each unusable record.

        Log one WARNING for all objects that no input covers.
        """
        for notice in self._notices[:_MOST_LOGGED]:
            advice = {"advice": notice.advice} if notice.advice else {}
            report = log.warning if advice else log.info
            report("event without an object", call_id=self._call_id, reason=_short(notice.text), **advice)
        for stored, why in self._not_new[:_MOST_LOGGED]:
            log.info(
                "object of an event skipped",
                call_id=self._call_id,
                object=_short(stored.location),
                event_name=_short(stored.name),
                reason=_short(why),
            )
        if len(self._not_new) > _MOST_LOGGED:
            log.info("more objects of an event skipped", call_id=self._call_id, count=len(self._not_new) - _MOST_LOGGED)
        for stored, why in self._unusable[:_MOST_LOGGED]:
            log.warning(
                "a record of an event cannot be processed",
                call_id=self._call_id,
                object=_short(stored.location),
                reason=_short(why),
            )
        if len(self._unusable) > _MOST_LOGGED:
            count = len(self._unusable) - _MOST_LOGGED
            log.warning("more records of an event cannot be processed", call_id=self._call_id, count=count)
        if self._not_covered:
            log.warning(
                "no input of the service definition covers the object of an event, so the script does not run on it; "
                "limit the notification to the folder of the input, or add an input",
                call_id=self._call_id,
                object=", ".join(_short(stored.location) for stored in self._not_covered[:_MOST_EXPLAINED]),
                count=len(self._not_covered),
            )

    @property
    def has_unusable(self) -> bool:
        return bool(self._unusable)

    @property
    def explanation(self) -> str:
        """Return the reasons why the script did not run, in one line."""
        reasons = [_short(notice.text) for notice in self._notices]
        reasons += [f"{_short(stored.location)}: {_short(why)}" for stored, why in self._not_new]
        reasons += [f"{_short(stored.location)}: {_short(why)}" for stored, why in self._unusable]
        hint = "" if self._is_job else " (?input=raw makes the event the input)"
        uncovered = f"no input of the service definition covers it{hint}"
        reasons += [f"{_short(stored.location)}: {uncovered}" for stored in self._not_covered]
        more = f"; and {len(reasons) - _MOST_EXPLAINED} more" if len(reasons) > _MOST_EXPLAINED else ""
        return f"the script did not run: {'; '.join(reasons[:_MOST_EXPLAINED])}{more}"


def _short(text: str) -> str:
    return printable(text[:_MOST_CHARACTERS])
