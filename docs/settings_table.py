"""Write the README's table of settings from ``watchdog/settings/declarations.py`` (``make docs``)."""

from __future__ import annotations

from pathlib import Path

from watchdog.settings.report import settings_table

README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- settings: made by `make docs` -->\n"
END = "<!-- end of settings -->"


def with_settings(readme: str) -> str:
    """The README with the table that the declaration makes."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_settings(README.read_text()))
