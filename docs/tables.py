"""Write the tables of the docs that are made from declarations in the program (``make docs``).

    python docs/tables.py            writes the tables
    python docs/tables.py --check    only checks that they are up to date

Each table stands in its page between two comments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from watchdog.commands.catalogue import CATALOGUE, Command
from watchdog.commands.setting_groups import ALL, setting_groups
from watchdog.http.openapi.answers import ANSWERED_BEFORE_A_CALL, MEANINGS
from watchdog.http.problems import STATUS_OF_ERROR
from watchdog.invocation import outcome
from watchdog.settings.declarations import SETTINGS, Setting
from watchdog.telemetry.metrics import Callers, Metrics
from watchdog.warm.workers import REASONS, STATES

ROOT = Path(__file__).parent.parent
# The settings that the README shows: those that most services set.
_MOST_USED = ("max_inflight", "max_queue", "exec_timeout", "max_input_size", "auth_token_file", "log_level")


def settings_table(settings: Iterable[Setting]) -> str:
    """Return these settings, each with its default and its variables."""
    rows = []
    for setting in settings:
        variables = f"`{setting.variable}`" + (f", `{setting.name}`" if setting.bare else "")
        rows.append((f"`{setting.name}`", setting.default_text, setting.help, variables))
    return _table(("name", "default", "meaning", "environment"), rows)


def metrics_table() -> str:
    """Return the metrics of a server that has counted one of everything, so that all labels are there."""
    metrics = Metrics(
        places=lambda: (0, 0, 0),
        outcomes=outcome.OUTCOMES,
        callers=lambda: Callers(given_up={"body": 0, "answer": 0}),
    )
    metrics.request_answered(code=200, method="POST", duration_s=0)
    metrics.invocation_ended(
        outcome="ok", duration_s=0, queue_wait_s=0, input_bytes=0, output_bytes=0, cpu_s=0, peak_rss_bytes=0
    )
    metrics.expect_transfers(["minio.default"])
    metrics.expect_workers(lambda: dict.fromkeys(STATES, 0), REASONS)
    rows = []
    for family in metrics.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        rows.append((f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation))
    return _table(("metric", "type", "labels", "meaning"), rows)


def statuses_table() -> str:
    """Return each status of an error, with the titles that its problem document may have."""
    titles: dict[int, list[str]] = {405: ["Method not allowed"]}
    for status, title in (*((status, title) for _, status, title in STATUS_OF_ERROR), *ANSWERED_BEFORE_A_CALL):
        if title not in titles.setdefault(status, []):
            titles[status].append(title)
    rows = ((str(status), MEANINGS[status], "; ".join(titles[status])) for status in sorted(titles))
    return _table(("status", "what happened", "`title`"), rows)


def outcomes_table() -> str:
    """Return each outcome, grouped by its cause."""
    return _table(
        ("outcome", "cause", "meaning"),
        ((f"`{name}`", cause, meaning) for name, (cause, meaning) in outcome.MEANINGS.items()),
    )


def commands_text() -> str:
    """Return a section for each command, with its arguments and examples."""
    return "\n".join(_section(name, command) for name, command in CATALOGUE.items())


def _section(name: str, command: Command) -> str:
    lines = [f"## watchdog {name}", "", f"{command.summary[0].upper()}{command.summary[1:]}.", ""]
    lines += ["```", f"watchdog {name} {command.synopsis}", "```", ""]
    rows = [(f"`{', '.join(_shown_names(*each))}`", each.help) for each in command.arguments]
    text = "\n".join([*lines, ""]) + (_table(("argument", "meaning"), rows) + "\n" if rows else "")
    if command.settings == ALL:
        text += "All [settings](settings.md) have an effect.\n\n"
    elif command.settings:
        groups = setting_groups()
        names = [f"`{setting}`" for title in command.settings for setting in groups[title]]
        text += f"These [settings](settings.md) have an effect: {', '.join(names)}.\n\n"
    rows = [(f"`{_in_table(line)}`", does) for line, does in command.examples]
    return text + _table(("example", "what it does"), rows)


def _shown_names(names: tuple[str, ...], _: str, options: Mapping[str, object]) -> list[str]:
    """Return the names of an argument as a user writes them: ``-o PATH``, or ``FILE`` for one without a dash."""
    metavar = options.get("metavar", "")
    return [f"{each} {metavar}".rstrip() if each.startswith("-") else str(metavar) for each in names]


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (f"| {' | '.join(row)} |\n" for row in (titles, *rows))
    return next(lines) + "|---" * len(titles) + "|\n" + "".join(lines)


_TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {"settings": lambda: settings_table([SETTINGS[name] for name in _MOST_USED])},
    "docs/reference/settings.md": {"settings": lambda: settings_table(SETTINGS.values())},
    "docs/reference/commands.md": {"commands": commands_text},
    "docs/reference/metrics.md": {"metrics": metrics_table},
    "docs/reference/statuses-and-outcomes.md": {"statuses": statuses_table, "outcomes": outcomes_table},
}


def pages() -> dict[Path, str]:
    """Return each page that has such tables, as it must be.

    Raises:
        ValueError: a page does not have the comments between which a table stands.
    """
    made = {}
    for name, tables in _TABLES.items():
        text = (ROOT / name).read_text()
        for title, table in tables.items():
            begin, end = f"<!-- {title}: made by `make docs` -->\n", f"<!-- end of {title} -->"
            before, _, rest = text.partition(begin)
            _, found, after = rest.partition(end)
            if not found:
                raise ValueError(f"{name}: put the lines {begin.strip()!r} and {end!r} where the table belongs")
            text = f"{before}{begin}\n{table()}\n{end}{after}"
        made[ROOT / name] = text
    return made


if __name__ == "__main__":
    stale = {path: text for path, text in pages().items() if path.read_text() != text}
    if "--check" in sys.argv[1:] and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"tables of the docs are not as the program declares them: {names}; run `make docs`")
    for path, text in stale.items():
        path.write_text(text)
