"""Read the file of the token that callers must send, and check that there is a token if one is needed."""

from __future__ import annotations

from ..system.files import small_file
from .declarations import SETTINGS
from .kinds import TOKEN, parse_token
from .reading import Reading
from .source import SettingSource
from .text import in_quotes, why_unreadable

_TOKEN_FILE_MOST_BYTES = 65536


def read_token_file(reading: Reading) -> None:
    path = reading.values["auth_token_file"]
    if path is None:
        return
    source = reading.sources["auth_token_file"]
    if reading.find(SETTINGS["auth_token"])[0] is not None:
        reading.problem("auth_token_file", source, f"is {in_quotes(path)}, but auth_token is set too; set only one")
        return
    try:
        content = small_file(path, _TOKEN_FILE_MOST_BYTES)
    except OSError as error:
        reading.problem("auth_token_file", source, f"is {in_quotes(path)}; {why_unreadable(error)}")
        return
    try:
        reading.values["auth_token"] = parse_token(content.decode("ascii"))
        reading.sources["auth_token"] = SettingSource("auth_token_file", path)
    except ValueError:
        found = "has no usable token (not shown)" if content.strip() else "is empty"
        reading.problem("auth_token_file", source, f"is {in_quotes(path)}, which {found}; expected {TOKEN.accepts}")


def check_auth_all(reading: Reading) -> None:
    is_unread = not reading.unread.isdisjoint({"auth_all", "auth_token", "auth_token_file"})
    if not reading.values["auth_all"] or is_unread or reading.values["auth_token"] is not None:
        return
    if reading.values["auth_token_file"] is None:  # otherwise the problem with the file is reported
        reading.problem(
            "auth_all", reading.sources["auth_all"], "is true, but there is no token; set auth_token_file, too"
        )
