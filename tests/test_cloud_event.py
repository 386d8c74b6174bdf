"""Attributes of a CloudEvent, out of headers and into them."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from watchdog.errors import BadInput
from watchdog.invocation.cloud_event import event_of, headers_of_answer

REQUIRED = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}


def event(**attributes: str) -> dict[str, str]:
    headers = CIMultiDict(REQUIRED)
    headers.update({f"Ce-{name}": value for name, value in attributes.items()})
    return event_of(headers)


def test_attributes_have_lower_case_names_and_extensions_count() -> None:
    assert event(SUBJECT="photo", partitionkey="7") == {
        "specversion": "1.0",
        "id": "1",
        "source": "/s",
        "type": "t",
        "subject": "photo",
        "partitionkey": "7",
    }


@pytest.mark.parametrize("missing", REQUIRED)
def test_without_a_required_attribute_it_is_not_an_event(missing: str) -> None:
    assert event_of(CIMultiDict({**REQUIRED, missing: ""})) == {}
    assert event_of(CIMultiDict({name: value for name, value in REQUIRED.items() if name != missing})) == {}


def test_an_event_of_another_version_is_not_known() -> None:
    assert event(specversion="0.3") == {}
    assert event(specversion="1.1")["specversion"] == "1.1"


# Examples of the binding's section 3.1.3.2.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("plain", "plain"),
        ('"quoted \\"x\\""', 'quoted "x"'),
        ('"', '"'),
        ("100%", "100%"),
        ("caf\u00e9", "café"),
    ],
)
def test_values_are_decoded(value: str, text: str) -> None:
    assert event(subject=value)["subject"] == text


@pytest.mark.parametrize(
    ("value", "problem"),
    [("%ff", "is not percent-encoded UTF-8"), ("\udcff", "is not"), ("a%00b", "control"), ("a%0Ab", "control")],
)
def test_what_no_variable_can_carry_is_bad_input(value: str, problem: str) -> None:
    with pytest.raises(BadInput, match=f"the header Ce-Subject: .*{problem}"):
        event(subject=value)


def test_headers_that_are_not_attributes_are_ignored() -> None:
    assert event_of(CIMultiDict({**REQUIRED, "ce-": "x", "ce-a-b": "x", "ce-a_b": "x", "xce-a": "x"})).keys() == {
        name.removeprefix("ce-") for name in REQUIRED
    }


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1), st.text(min_size=1).map(str.strip))
def test_an_answer_is_an_event_of_its_own_with_the_same_id(id_: str, service: str) -> None:
    headers = headers_of_answer({"id": id_, "type": "dev.ping"}, service.encode("utf-8", "replace").decode())
    assert all(value.isascii() and value.isprintable() and value == value.strip() for value in headers.values())
    answered = event_of(CIMultiDict(headers))
    assert answered["type"] == "dev.ping.answer"
    assert answered["id"] == id_
    assert unquote(answered["source"]) == "/" + service.encode("utf-8", "replace").decode()
