"""What a comparison found, as tables, pages and plots: medians over the turns, means over the pairs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from measure import method_named, say

# The columns of a table: key in the results, heading, format. Those that no row has are left out.
COLUMNS = (
    ("dice", "Dice", "{:.4f}"),
    ("tre", "TRE mm", "{:.3f}"),
    ("lncc", "LNCC", "{:.4f}"),
    ("folds", "folds %", "{:.4f}"),
    ("sd_log_jacobian", "SD log J", "{:.3f}"),
    ("inverse_mean", "inverse mean", "{:.3f}"),
    ("inverse_p99", "inverse p99", "{:.3f}"),
    ("wall", "time s", "{:.1f}"),
    ("cpu", "CPU s", "{:.1f}"),
    ("stolen", "stolen %", "{:.0f}"),
    ("peak", "peak GB", "{:.2f}"),
    ("wall_ratio", "time / greedy", "{:.3f}"),
    ("peak_ratio", "memory / greedy", "{:.2f}"),
)


def summary(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Medians over the turns, by method, and the ratios to greedy where it took part."""
    rows = {}
    for name, runs in result["runs"].items():
        keys = [key for key, _, _ in COLUMNS if all(key in run for run in runs)]
        rows[name] = {key: statistics.median(run[key] for run in runs) for key in keys}
    return with_ratios(rows, result.get("earlier", {}))


def with_ratios(rows: dict[str, dict[str, float]], earlier: Iterable[str] = ()) -> dict[str, dict[str, float]]:
    """The rows, each with its time and memory divided by greedy's; only those of one run are compared."""
    reference = rows.get("greedy")
    if reference is None or "greedy" in earlier:
        return rows
    return {
        name: row if name in earlier else row | {f"{key}_ratio": row[key] / reference[key] for key in ("wall", "peak")}
        for name, row in rows.items()
    }


def with_earlier(result: dict[str, Any], content: dict[str, Any] | None, methods: Iterable[str]) -> dict[str, Any]:
    """The result, and what an earlier page (its JSON) has of the same pair by methods that take no part this time."""
    old = next((each for each in (content or {}).get("results", []) if each["pair"] == result["pair"]), None)
    if content is None or old is None:
        return result
    out = result | {"runs": dict(result["runs"]), "failed": dict(result["failed"]), "earlier": {}}
    for kind in ("runs", "failed"):
        for name in old[kind]:
            if name not in methods:
                out[kind][name] = old[kind][name]
                out["earlier"][name] = old.get("earlier", {}).get(name, content["date"])
    return out


def over_pairs(summaries: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the pairs of the methods that did every one of them."""
    names = [name for name in summaries[0] if all(name in each for each in summaries)]
    keys = [key for key, _, _ in COLUMNS if not key.endswith("_ratio")]
    apart = [name for name in names if not all("wall_ratio" in each[name] for each in summaries)]
    return with_ratios(
        {
            name: {
                key: statistics.fmean(each[name][key] for each in summaries)
                for key in keys
                if all(key in each[name] for each in summaries)
            }
            for name in names
        },
        apart,
    )


def before_over_pairs(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the pairs of the scores before registration."""
    keys = [key for key, _, _ in COLUMNS if all(key in result["before"] for result in results)]
    return {key: statistics.fmean(result["before"][key] for result in results) for key in keys}


def table(
    before: dict[str, float], rows: dict[str, dict[str, float]], earlier: dict[str, str] | None = None
) -> list[str]:
    """Lines of a Markdown table; `earlier`: methods that were measured in another run, and when."""
    columns = [column for column in COLUMNS if any(column[0] in row for row in (before, *rows.values()))]

    def line(title: str, row: dict[str, float]) -> str:
        return (
            "| "
            + " | ".join([title, *(form.format(row[key]) if key in row else "–" for key, _, form in columns)])
            + " |"
        )

    heads = ["method", *(head for _, head, _ in columns)]
    ruler = ["---", *("---:" for _ in columns)]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ruler)]
    dates = earlier or {}
    titles = {name: method_named(name).title + (f" ({dates[name]})" if name in dates else "") for name in rows}
    return [*lines, line("before", before), *(line(titles[name], row) for name, row in rows.items())]


def report(name: str, facts: dict[str, Any], results: Sequence[dict[str, Any]], picture: str | None) -> str:
    """The Markdown page of one set of pairs."""
    threads = facts["threads"]
    # What was done, which may be less than was asked for: the page is written after every run.
    now = [runs for each in results for key, runs in each["runs"].items() if key not in each.get("earlier", {})]
    repeats = max(map(len, now), default=0)
    lines = [f"# {name}", ""]
    lines += [
        f"{facts['date']}, {facts['processor']} ({facts['cores']} cores), {threads} thread{'s' * (threads > 1)}, "
        f"medians over {repeats} turn{'s' * (repeats > 1)} in alternation"
        + (
            f" ({', '.join(method_named(key).title for key in facts['once'])}: the first only)"
            if facts.get("once")
            else ""
        )
        + ". Made with",
        "",
        f"    {facts['command']}",
        "",
    ]
    lines += [facts["note"], ""] if facts.get("note") else []
    summaries = [summary(result) for result in results]
    if len(results) > 1 and any(over_pairs(summaries)):
        lines += [f"## Mean over {len(results)} pairs", ""]
        lines += [*table(before_over_pairs(results), over_pairs(summaries), results[0].get("earlier")), ""]
    for result, rows in zip(results, summaries, strict=True):
        first = result["before"]
        stages = "deformable only" if result["linear"] == "none" else f"{result['linear']} first"
        mask = ", fixed mask" if result["masked"] else ""
        lines += [
            f"## {result['pair']}",
            "",
            f"{stages}{mask}. Inside: {first['inside']}, {first['inside_voxels']} voxels.",
            "",
        ]
        earlier = result.get("earlier", {})
        lines += [*table(first, rows, earlier), ""]
        if earlier:
            lines += ["With a date: from an earlier run of this page, whose times are not of the same hours.", ""]
        lines += [f"- {method_named(method).title}: {reason}" for method, reason in result["failed"].items()]
        lines += [""] * bool(result["failed"])
    if picture:
        lines += [f"![Accuracy against time]({picture})", ""]
    lines += [
        "Dice, TRE: mean over labels or landmarks. LNCC, folds, SD log J, inverse error (forward then inverse, in "
        "voxels): inside. Time, CPU and peak memory: of the whole process. Stolen: how much of the processor time that "
        "this virtual machine wanted its host gave to others, which makes the time longer. – : not known, or the "
        "program gives none.",
        "",
        "Versions: "
        + ", ".join(f"{method_named(key).title} {value}" for key, value in facts["versions"].items())
        + ".",
    ]
    lines += [f"Skipped: {method_named(key).title}: {why}." for key, why in facts["skipped"].items()]
    return "\n".join(lines) + "\n"


def plot(name: str, results: Sequence[dict[str, Any]], path: Path) -> bool:
    """Accuracy against time, as a PNG; False where matplotlib is missing or nothing was measured."""
    summaries = [summary(result) for result in results]
    rows = over_pairs(summaries) if len(results) > 1 else summaries[0]
    if not rows:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        say("no plot: pip install matplotlib")
        return False
    key, label = next(
        (key, label)
        for key, label in (("dice", "mean Dice"), ("tre", "landmark error (mm)"), ("lncc", "local correlation"))
        if all(key in row for row in rows.values())
    )
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for ours, colour in ((True, "#c1272d"), (False, "#3b5b7a")):
        chosen = sorted(
            (row["wall"], row[key], method) for method, row in rows.items() if method.startswith("nir-") == ours
        )
        if ours:
            axes.plot([x for x, _, _ in chosen], [y for _, y, _ in chosen], color=colour, linewidth=1, alpha=0.5)
        for x, y, method in chosen:
            axes.scatter([x], [y], s=40, color=colour, marker="o" if ours else "s", zorder=3)
            axes.annotate(
                method_named(method).title, (x, y), (6, 5), textcoords="offset points", fontsize=8, color=colour
            )
    axes.set_xscale("log")
    ticks = [second for second in _TICKS if 0.4 * min(row["wall"] for row in rows.values()) <= second]
    ticks = [second for second in ticks if second <= 4 * max(row["wall"] for row in rows.values())]
    axes.set_xticks(ticks, [str(second) for second in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ticks[0], ticks[-1])
    axes.margins(y=0.15)
    if key == "tre":
        axes.invert_yaxis()
    axes.set_xlabel("whole-process time (s)")
    axes.set_ylabel(f"{label}{', better is up' if key == 'tre' else ''}")
    axes.set_title(f"{name}: {len(results)} pair{'s' * (len(results) > 1)}", loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return True


_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)


def save(folder: Path, name: str, facts: dict[str, Any], results: Sequence[dict[str, Any]], *, with_plot: bool) -> None:
    """Write NAME.json and NAME.md, and NAME.png when asked, into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{name}.png"
    drawn = with_plot and plot(name, results, picture)
    content = facts | {"set": name, "results": [dict(result, summary=summary(result)) for result in results]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.md").write_text(report(name, facts, results, picture.name if drawn else None))


def brief(found: dict[str, Any]) -> str:
    """The numbers of one run on one line."""
    return "  ".join(f"{head} {form.format(found[key])}" for key, head, form in COLUMNS if key in found)
