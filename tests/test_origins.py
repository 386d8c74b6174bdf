"""``cors_origins``: which texts are origins, and what an error says."""

from __future__ import annotations

import pytest

from watchdog.settings.load import load


def problem_of(text: str) -> str:
    (problem,) = load({"WATCHDOG_CORS_ORIGINS": text}, {}).problems
    return problem


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("*", ("*",)),
        ("https://a.example", ("https://a.example",)),
        (" https://a.example , http://localhost:3000,", ("https://a.example", "http://localhost:3000")),
        ("http://127.0.0.1:8000, http://[::1]:1", ("http://127.0.0.1:8000", "http://[::1]:1")),
        ("http://[::ffff:102:304]", ("http://[::ffff:102:304]",)),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
        ("https://a, https://a", ("https://a",)),
    ],
)
def test_a_list_of_origins_is_read(text: str, origins: tuple[str, ...]) -> None:
    configuration = load({"WATCHDOG_CORS_ORIGINS": text}, {})
    assert configuration.problems == []
    assert configuration.settings.cors_origins == origins


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("https://a.example/", "https://a.example"),
        ("https://a.example/page?q#f", "https://a.example"),
        ("HTTPS://A.example", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"),
        ("http://a.example:0443", "http://a.example:443"),
        ("http://[0:0::1]:3000/", "http://[::1]:3000"),
        ("http://[::ffff:1.2.3.4]", "http://[::ffff:102:304]"),
        ("https://right.example, https://a.example/", "https://a.example"),
    ],
)
def test_an_origin_in_another_form_is_an_error_that_says_what_to_write(text: str, right: str) -> None:
    assert problem_of(text).endswith(f"; write {right}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.example", "write one like https://a.example"),
        ("localhost:3000", "write one like https://a.example"),
        ("ftp://a.example", "write one like https://a.example"),
        ("https://", "write one like https://a.example"),
        ("https://user@a.example", "write one like https://a.example"),
        ("https://a.example https://b.example", "write one like https://a.example"),
        ("null", "null is the origin of local files"),
        ("https://*.a.example", "write each origin in full"),
        ("*, https://a.example", "already allows the pages of all origins"),
        ("https://a.example:70000", "a port is a number from 1 to 65535"),
        ("https://a.example:0", "a port is a number from 1 to 65535"),
        ("https://bücher.example", "xn--"),
        ("http://1.2.3", "not an IPv4 address"),
        ("http://0x7f000001", "not an IPv4 address"),
        ("http://a.0x4", "not an IPv4 address"),
        ("http://[::g]", "not an IPv6 address"),
        ("http://[fe80::1%eth0]", "not an IPv6 address"),
        ("http://-a", "not a host name"),
        ("http://a..b", "not a host name"),
        (",", "it names no origin"),
    ],
)
def test_a_text_that_is_not_an_origin_is_an_error_with_the_reason(text: str, reason: str) -> None:
    problem = problem_of(text)
    assert problem.startswith("cors_origins: environment WATCHDOG_CORS_ORIGINS is ")
    assert reason in problem
