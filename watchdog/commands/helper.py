"""`watchdog helper`: print a helper file for warm functions. Authors of scripts copy it into their images."""

from __future__ import annotations

import os

from ..errors import ConfigError
from ..invocation.environment import WARM_HELPERS
from ..system import standard_output

_FILES = {"python": "watchdog_warm.py", "sh": "watchdog_warm.sh"}


def helper(name: str | None) -> int:
    """Print the file of this helper. If no name is given, print the list of helpers. Return the exit code 0.

    Raises:
        ConfigError: there is no such helper.
    """
    if name is None:
        for known, file in _FILES.items():
            standard_output.write_line(f"watchdog helper {known} > {file}")
        return 0
    if name not in _FILES:
        import difflib

        nearest = difflib.get_close_matches(name.lower(), _FILES, n=1, cutoff=0.0)[0]
        names = " and ".join(_FILES)
        raise ConfigError([f"there is no helper {name!r}; the nearest name is {nearest}; the helpers are {names}"])
    with open(os.path.join(WARM_HELPERS, _FILES[name]), "rb") as content:
        standard_output.write(content.read())
    return 0
