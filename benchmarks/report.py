"""Write the results as JSON, as a Markdown table, and as plots."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growing_work import crookedness, exponent, marginal_costs
from measures import MEASURES
from measuring import Found, Growth, Row

BEGIN, END = "<!-- measured: made by `make bench` -->", "<!-- end of measured -->"


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return median and quartiles, and the values themselves. The quartiles of a single value are this value."""
    median = statistics.median(values)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (median,) * 3
    return {"median": median, "q1": lower, "q3": upper, "values": list(values)}


def verdict(row: Row) -> str:
    """Return whether the target was met, by how much it was missed, or why this is not known."""
    if not row.judged:
        return "not measured: " + ("; ".join(f"{name}: {why}" for name, why in row.missing.items()) or "no value")
    wrong = {name: count for name, count in row.not_right.items() if count}
    if wrong:
        return "failed: answers that were not right: " + ", ".join(f"{name} {count}" for name, count in wrong.items())
    reached = statistics.median(row.judged)
    if reached >= row.limit if row.more_is_better else reached <= row.limit:
        return "met"
    return f"missed by {abs(reached / row.limit - 1):.0%}"


def as_json(found: dict[str, Found], about: dict[str, Any]) -> dict[str, Any]:
    return about | {
        "rows": [_row_as_json(row) for one in found.values() for row in one.rows],
        "growths": [_growth_as_json(growth) for one in found.values() for growth in one.growths],
        "details": {name: one.details for name, one in found.items() if one.details},
        "not_run": [name for name in MEASURES if name not in found],
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        "measure": row.measure,
        "what": row.what,
        "unit": row.unit,
        "target": _target(row),
        "verdict": verdict(row),
        "compared": summary(row.judged) if row.judged else None,
        "measured": {name: summary(values) for name, values in row.values.items()},
        "not_right": row.not_right,
        "missing": row.missing,
        "notes": row.notes,
    }


def _growth_as_json(growth: Growth) -> dict[str, Any]:
    return {
        "measure": growth.measure,
        "what": growth.what,
        "unit": growth.unit,
        "amounts": list(growth.amounts),
        "costs": {name: [summary(values) for values in costs] for name, costs in growth.costs.items()},
        "marginal_costs": {name: marginal_costs(growth, name) for name in growth.costs if not growth.is_flat},
        "crookedness": {name: crookedness(growth, name) for name in growth.costs},
        "exponent": {name: exponent(growth, name) for name in growth.costs},
    }


# ---- Markdown


def as_markdown(found: dict[str, Found], about: dict[str, Any], plots: Sequence[str], no_plots: str | None) -> str:
    """Return the tables, and the plots or why there are none."""
    machine = about["machine"]
    where = (
        f"{about['date']}, commit {about['commit']}, scale *{about['scale']}*: {machine['cores']} cores "
        f"({machine['processor']}), Linux {machine['kernel']}, Python {machine['python']}, files on "
        f"{machine['files_on']}; load of the machine before: {machine['load_before']:.1f}. Servers run with "
        f"{about['packages']}; many callers are simulated by {about['many_callers']}.\n"
    )
    text = [
        where,
        "| what | target | measured | others | compared (quartiles) | |\n|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for row in (row for one in found.values() for row in one.rows):
        text.append(_markdown_of(row))
        notes += [f"- {row.what}: {note}." for note in row.notes]
    for name in MEASURES:
        if name not in found:
            text.append(f"| {name} | – | – | – | – | {_why_not(name, about)} |")
    for name, version in about["contenders"].items():
        if version is None:
            text.append(f"\nMissing: {name} is not installed.")
    if notes:
        text.append("\n" + "\n".join(notes))
    for one in found.values():
        text += [_growth_as_markdown(growth) for growth in one.growths]
    if "stall" in found:
        text += [_stalls_as_markdown(name, details) for name, details in found["stall"].details.items()]
    text.append("\n" + ("\n".join(plots) if no_plots is None else f"No plots: {no_plots}."))
    return "\n".join(text) + "\n"


def _why_not(name: str, about: dict[str, Any]) -> str:
    return f"failed: {about['failed'][name]}" if name in about["failed"] else "not part of this run"


def _markdown_of(row: Row) -> str:
    measured = _value(row.values["watchdog"], row.unit) if "watchdog" in row.values else "–"
    # The rows of one measure compare with different contenders. Each row shows only the contenders that it compares.
    named = [name for name in row.values if name != "watchdog" and (row.against is None or name in _beside(row))]
    others = ", ".join(f"{name} {_value(row.values[name], row.unit)}" for name in named) or "–"
    compared = "–"
    if row.against is not None and row.judged:
        seen = summary(row.judged)
        compared = f"{seen['median']:.2f} ({seen['q1']:.2f}–{seen['q3']:.2f})"
        if theirs := row.ratios("against"):
            compared += f"; against {statistics.median(theirs):.2f}"
    if "against" in row.values and "watchdog" in row.values:
        change = [a / b for a, b in zip(row.values["watchdog"], row.values["against"], strict=True) if b]
        if change:
            seen = summary(change)
            others += f" (change {seen['median']:.3f}, {seen['q1']:.3f}–{seen['q3']:.3f})"
    return f"| {row.what} | {_target(row)} | {measured} | {others} | {compared} | {verdict(row)} |"


def _beside(row: Row) -> set[str]:
    known = {"floor", "webhook", "nginx+fcgiwrap"}
    return {name for name in row.values if name not in known} | {str(row.against)}


def _target(row: Row) -> str:
    sign = "≥" if row.more_is_better else "≤"
    return f"{sign} {row.limit:g}" + (f" × {row.against}" if row.against is not None else f" {row.unit}".rstrip())


def _value(values: Sequence[float], unit: str) -> str:
    return f"{_digits(statistics.median(values))} {unit}".rstrip()


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _growth_as_markdown(growth: Growth) -> str:
    names = list(growth.costs)
    columns = [growth.x, *names]
    if not growth.is_flat:
        columns += [f"{name}: ns for each additional {growth.x.removesuffix('s')}" for name in names]
    lines = [
        f"\n{growth.what.capitalize()} ({growth.unit}):\n",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    for number, amount in enumerate(growth.amounts):
        cells = [_digits(statistics.median(growth.costs[name][number])) for name in names]
        if not growth.is_flat:
            for name in names:
                marginal = dict(marginal_costs(growth, name)).get(amount)
                cells.append("–" if marginal is None else f"{marginal * 1e6:,.2f}")
        lines.append(f"| {amount:,} | " + " | ".join(cells) + " |")
    for name in names:
        power = exponent(growth, name)
        if power is not None:
            lines.append(f"\n{name}: the cost grows with the power {power:.2f} of the amount (1 is linear).")
    return "\n".join(lines)


def _stalls_as_markdown(name: str, details: dict[str, Any]) -> str:
    lines = [
        f"\nLongest stalls by load, {name} (ms):\n",
        (
            "| load | a callback held the loop | processor time of a callback | wall-clock time of a callback "
            "| slowest answer of health |"
        ),
        "|---|---|---|---|---|",
    ]
    for kind, seen in details.items():
        probe_ms = seen["probe_worst_ms"]
        cells = [*(seen[f"{name}_ms"] for name in ("held", "cpu", "wall")), math.nan if probe_ms is None else probe_ms]
        lines.append(f"| {kind} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def put_between_markers(page: Path, text: str) -> None:
    """Replace the text between the markers of a page.

    Raises:
        ValueError: the page does not have both markers exactly once.
    """
    old = page.read_text()
    new, count = re.subn(
        f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n\n{text}\n{END}", old, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{page} has not just one place between {BEGIN} and {END}")
    page.write_text(new)


# ---- plots


def plot(found: dict[str, Found], directory: Path) -> list[str]:
    """Draw all plots as SVG, and return the names of the files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    # With these parameters, the same figures make the same files.
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    from matplotlib import pyplot

    names = []

    def save(name: str) -> None:
        pyplot.tight_layout()
        pyplot.savefig(directory / f"{name}.svg", metadata={"Date": None, "Creator": None})
        pyplot.close()
        names.append(f"{name}.svg")

    for measure, one in found.items():
        for growth in one.growths:
            pyplot.figure(figsize=(6, 3.5))
            for name, costs in growth.costs.items():
                seen = [summary(values) for values in costs]
                medians = [point["median"] for point in seen]
                spread = [
                    [point["median"] - point["q1"] for point in seen],
                    [point["q3"] - point["median"] for point in seen],
                ]
                pyplot.errorbar(growth.amounts, medians, yerr=spread, marker="o", capsize=3, label=name)
            # A logarithmic axis cannot show 0.
            if 0 in growth.amounts:
                pyplot.xscale("symlog", linthresh=1000)
            else:
                pyplot.xscale("log")
            if growth.is_flat:
                pyplot.ylim(bottom=0)
            else:
                pyplot.yscale("log")
            pyplot.xlabel(growth.x)
            pyplot.ylabel(growth.unit)
            pyplot.title(growth.what)
            pyplot.legend()
            save(measure)
        if measure in ("one_caller", "eight_callers", "base64_in", "base64_out"):
            row = one.rows[0]
            pyplot.figure(figsize=(6, 0.6 + 0.45 * len(row.values)))
            seen = [summary(values) for values in row.values.values()]
            spread = [
                [point["median"] - point["q1"] for point in seen],
                [point["q3"] - point["median"] for point in seen],
            ]
            pyplot.barh(list(row.values), [point["median"] for point in seen], xerr=spread, capsize=3, color="#4878a8")
            pyplot.gca().invert_yaxis()
            pyplot.xlabel(row.unit)
            pyplot.title(row.what + (" (more is better)" if row.more_is_better else " (less is better)"))
            save(measure)
        if measure == "endurance":
            pyplot.figure(figsize=(6, 3))
            for name, curve in one.details.items():
                pyplot.plot(curve["calls"], curve["rss_mib"], marker=".", label=name)
            pyplot.ylim(0, 1.2 * max(max(curve["rss_mib"]) for curve in one.details.values()))
            pyplot.xlabel("calls served")
            pyplot.ylabel("memory of the server, MiB")
            pyplot.legend()
            save(measure)
    return names


def write(directory: Path, found: dict[str, Found], about: dict[str, Any], link: str = "") -> str:
    """Write ``results.json``, ``results.md`` and the plots (``*.svg``) to the directory. Return the Markdown.

    Args:
        link: the beginning of the plots' paths in the page that shows them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    no_plots = None
    names: list[str] = []
    try:
        names = plot(found, directory)
    except ImportError as error:
        no_plots = f"{error.name} is missing (benchmarks/requirements.txt has it)"
    document = as_json(found, about) | {"plots": names, "no_plots": no_plots}
    (directory / "results.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    shown = [f"![{name.removesuffix('.svg').replace('_', ' ')}]({link}{name})" for name in names]
    text = as_markdown(found, about, shown, no_plots)
    (directory / "results.md").write_text(text)
    return text
