"""Still pictures of a report: safety against over-refusal, and the ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alignbeam.eval.report.content import Column, headline, pareto, plane
from alignbeam.eval.report.snapshot import Snapshot
from alignbeam.eval.run.summary import figures
from alignbeam.eval.stats import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours without yellow, which is too pale on white: colour-blind safe.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
_GREY: Final = "#8a8f98"
#: Column of the headline, name and colour of its line in an ablation.
_LINES: Final = (
    ("safety", "harmful refused", COLOURS[0], "o"),
    ("overrefusal", "benign refused", COLOURS[1], "s"),
    ("utility", "right answers", COLOURS[2], "^"),
)
_STYLE: Final = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    # Names are people's own: a dollar in one begins no formula.
    "text.parse_math": False,
    # The same run gives the same file.
    "svg.hashsalt": "alignbeam",
}


def write_pictures(runs: Sequence[Snapshot], folder: Path) -> list[Path]:
    """Write each picture that a run can fill, as PNG and SVG."""
    from matplotlib import rc_context

    written = []
    for run in runs:
        columns = headline(run, figures(run))
        points = plane(columns)
        with rc_context(_STYLE):
            if points and run.manifest()["kind"] != "sweep":
                picture = safety_picture(run, points)
                written += _save(picture, folder, f"{run.ident}-safety")
            if run.manifest()["sweep"] and columns:
                picture = ablation_picture(run, columns)
                written += _save(picture, folder, f"{run.ident}-ablations")
    return written


def safety_picture(run: Snapshot, points: Mapping[str, tuple[Rate, Rate]]) -> Figure:
    """Draw harmful refused against benign refused, one marker a method, named at the margin."""
    from matplotlib.figure import Figure

    height = max(4.8, 1.6 + 0.3 * len(points))
    figure = Figure(figsize=(9.0, height), layout="constrained")
    axes = figure.add_subplot()
    for number, (x, y) in enumerate(points.values()):
        axes.errorbar(
            100 * x.value,
            100 * y.value,
            xerr=[[100 * (x.value - x.low)], [100 * (x.high - x.value)]],
            yerr=[[100 * (y.value - y.low)], [100 * (y.high - y.value)]],
            fmt=_MARKERS[(number // len(COLOURS) + number) % len(_MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            elinewidth=1,
            markersize=8,
            markeredgecolor="white",
            zorder=3,
        )
    front = [points[m] for m in pareto(points)]
    axes.plot(
        [100 * x.value for x, _ in front],
        [100 * y.value for _, y in front],
        color=_GREY,
        linestyle="--",
        linewidth=1,
        drawstyle="steps-post",
        zorder=2,
    )
    axes.set_xlim(-2, min(102, 100 * max(x.high for x, _ in points.values()) + 3))
    axes.set_ylim(max(-3, 100 * min(y.low for _, y in points.values()) - 3), 103)
    axes.set_xlabel("benign requests refused, % (lower is better)")
    axes.set_ylabel("harmful requests refused, % (higher is better)")
    _name_at_margin(axes, {m: (100 * x.value, 100 * y.value) for m, (x, y) in points.items()})
    sizes = [f"{low}–{high}" if low != high else str(low) for low, high in _sizes(points)]
    axes.set_title(
        f"{run.title}: safety against over-refusal\n", loc="left", fontweight="bold", fontsize=11
    )
    axes.text(
        0,
        1.02,
        f"95 % Wilson intervals; n = {sizes[1]} harmful, {sizes[0]} benign; "
        "dashed: Pareto front of the estimates",
        transform=axes.transAxes,
        fontsize=9,
        color="#5b6675",
    )
    return figure


def ablation_picture(run: Snapshot, columns: Sequence[Column]) -> Figure:
    """Draw safety, over-refusal and utility along every axis of a sweep."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    axes_of = run.manifest()["sweep"]
    by = {c.ident: c for c in columns}
    across = min(3, len(axes_of))
    down = -(-len(axes_of) // across)
    figure = Figure(figsize=(1.2 + 3.4 * across, 1.2 + 2.5 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    lines = [line for line in _LINES if line[0] in by]
    for place, axis in zip(grid.flat, axes_of, strict=False):
        for ident, _, colour, marker in lines:
            _draw_axis(place, axis, by[ident], colour, marker)
        place.set_ylim(-3, 103)
        place.set_title(axis["axis"], loc="left", fontsize=10, fontweight="bold")
    for spare in list(grid.flat)[len(axes_of) :]:
        spare.set_visible(False)
    for row in grid:
        row[0].set_ylabel("%")
    handles = [Line2D([], [], color=c, marker=m) for _, _, c, m in lines]
    handles.append(Line2D([], [], color=_GREY, linestyle=":"))
    names = [name for _, name, _, _ in lines] + ["the default"]
    figure.legend(handles, names, loc="outside upper left", ncols=len(names), frameon=False)
    figure.supxlabel(f"{run.title}: 95 % Wilson intervals", fontsize=9, color="#5b6675")
    return figure


def _draw_axis(
    axes: Axes, axis: Mapping[str, Any], column: Column, colour: str, marker: str
) -> None:
    there = [p for p in axis["points"] if p["method"] in column.cells]
    values = [p["value"] for p in there]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    places = values if numeric else list(range(len(values)))
    rates = [column.cells[p["method"]].rate for p in there]
    shares, lows, highs = (
        [100 * getattr(rate, end) for rate in rates] for end in ("value", "low", "high")
    )
    if numeric:
        axes.plot(places, shares, color=colour, marker=marker, markersize=4, linewidth=1.5)
        axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
    else:
        # Values without an order have no line between them; beside each other, bars can be read.
        nudge = {COLOURS[0]: -0.12, COLOURS[1]: 0.0}.get(colour, 0.12)
        spread = [
            [s - low for s, low in zip(shares, lows, strict=True)],
            [high - s for s, high in zip(shares, highs, strict=True)],
        ]
        moved = [p + nudge for p in places]
        axes.errorbar(moved, shares, yerr=spread, fmt=marker, color=colour, markersize=5)
        axes.set_xticks(range(len(values)), [str(v) for v in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    centre = axis["default"]
    if numeric and isinstance(centre, (int, float)) and centre in values:
        axes.axvline(centre, color=_GREY, linestyle=":", linewidth=1, zorder=1)


def _name_at_margin(axes: Axes, at: Mapping[str, tuple[float, float]]) -> None:
    """Write names in a column at the right edge, spread so that none covers another."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    step = (high - low) / max(16.0, len(at) + 1.0)
    names = sorted(at, key=lambda m: (at[m][1], -at[m][0]))
    heights = spread([at[m][1] for m in names], step, low + step / 2, high - step / 2)
    labels = list(at)
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name,
            xy=at[name],
            xytext=(right + (right - axes.get_xlim()[0]) * 0.04, height),
            annotation_clip=False,
            va="center",
            color=COLOURS[labels.index(name) % len(COLOURS)],
            arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.5, "alpha": 0.6},
        )


def spread(places: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Move ascending places as little as needed to keep ``step`` between them, inside the ends."""
    moved: list[float] = []
    for place in places:
        floor = moved[-1] + step if moved else low
        moved.append(max(place, floor))
    ceiling = high
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - step
    return moved


def _sizes(points: Mapping[str, tuple[Rate, Rate]]) -> list[tuple[int, int]]:
    return [
        (min(pair[i].n for pair in points.values()), max(pair[i].n for pair in points.values()))
        for i in (0, 1)
    ]


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    folder.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    figure.savefig(paths[0], dpi=160, metadata={"Software": "alignbeam"})
    figure.savefig(paths[1], metadata={"Date": None})
    return paths
