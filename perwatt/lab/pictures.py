"""The pictures of a Record: the bars of the 2015 study redone, speed against accuracy and latency, then and now.

Each is a matplotlib Figure drawn without any global state; `svg` and `png` turn one into a file's content.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from perwatt.lab import energy_table
from perwatt.lab.best import frontier
from perwatt.lab.energy_table import metered
from perwatt.lab.engine import PRECISIONS
from perwatt.lab.notation import estimate_text, half_width, number_text, percent_text
from perwatt.lab.published import REPLICATION, published
from perwatt.lab.record import Estimate, Record, Row
from perwatt.lab.terminal import shown

# Okabe and Ito's colours, which people with any colour vision tell apart; an engine keeps its own in every picture.
COLOURS = {
    "perwatt": "#D55E00",
    "onnxruntime": "#0072B2",
    "openvino": "#009E73",
    "torch": "#E69F00",
    "torch-cuda": "#B8860B",
    "ncnn": "#CC79A7",
    "mnn": "#56B4E9",
}
OTHER_COLOURS = ("#7F7F7F", "#8C6D31", "#5254A3", "#A55194")
# Stands for "the text's colour of the page" until `svg` replaces it: the page may be light or dark.
INK = "#123456"
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_FRONTIER: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": "--", "alpha": 0.7, "zorder": 0}
PANEL_WIDTH_INCHES = 4.6
LABELS_APART = 0.07  # of a panel's height


@dataclass(frozen=True)
class Measure:
    """What bars can show: its axis label, and how to take (value, half width or None) from a row; None: no figure."""

    label: str
    take: Callable[[Row], tuple[float, float | None] | None]


def _images_per_s(row: Row) -> tuple[float, float | None] | None:
    estimate = row.figures.images_per_s
    return None if estimate is None else (estimate.value, half_width(estimate))


def _images_per_joule(meter: str) -> Callable[[Row], tuple[float, float | None] | None]:
    def take(row: Row) -> tuple[float, float | None] | None:
        found = metered(row)
        if found is None or found.meter != meter or found.images_per_joule is None:
            return None
        return found.images_per_joule.value, half_width(found.images_per_joule)

    return take


def measures(record: Record) -> tuple[Measure, ...]:
    """Return what the bars of a Record show: images/s, and images/s/W in panels of their own for each scope."""
    per_watt = (
        Measure(f"images/s/W ({scope})", _images_per_joule(meter)) for scope, meter in energy_table.scopes(record)
    )
    return (Measure("images/s", _images_per_s), *per_watt)


def good(record: Record) -> tuple[Row, ...]:
    """Return the rows that pictures show: measured, with correct outputs."""
    return tuple(row for row in shown(record) if row.status == "ok" and row.figures.images_per_s is not None)


def engine_colours(record: Record) -> dict[str, str]:
    """Return each engine's colour: its own, or one of the greys and browns in order of appearance."""
    names = list(dict.fromkeys(row.engine for row in shown(record)))
    others = iter(OTHER_COLOURS * len(names))
    return {name: COLOURS.get(name) or next(others) for name in sorted(names, key=_engine_order)}


def _engine_order(name: str) -> int:
    return list(COLOURS).index(name) if name in COLOURS else len(COLOURS)


def bars(record: Record) -> Figure | None:
    """Return the figure of the study redone: a panel per network and batch, bars by precision and engine.

    None when there is nothing to show.
    """
    rows = good(record)
    networks = list(dict.fromkeys(row.network for row in rows))
    batches = sorted({row.batch for row in rows})
    shown_measures = [measure for measure in measures(record) if any(measure.take(row) for row in rows)]
    if not shown_measures:
        return None
    with rc_context(STYLE):
        lines = len(networks) * len(shown_measures)
        figure, panels = _grid(lines, len(batches), 2.35)
        colours = engine_colours(record)
        each = ((network, measure) for network in networks for measure in shown_measures)
        for line, (network, measure) in enumerate(each):
            for column, batch in enumerate(batches):
                members = [row for row in rows if (row.network, row.batch) == (network, batch)]
                _bars_panel(panels[line][column], members, measure, colours)
                panels[line][column].set_title(f"{network}, batch {batch}", loc="left", fontweight="bold", fontsize=10)
        _legend(figure, {name: colours[name] for name in colours if any(row.engine == name for row in rows)})
        return laid_out(figure)


def _bars_panel(axes: Axes, rows: Sequence[Row], measure: Measure, colours: dict[str, str]) -> None:
    precisions = [precision for precision in PRECISIONS if any(row.precision == precision for row in rows)]
    if not rows:
        axes.set_axis_off()
        return
    position, ticks = 0.0, []
    tallest = max((taken[0] + (taken[1] or 0) for taken in map(measure.take, rows) if taken), default=1.0)
    for precision in precisions:
        members = [row for row in rows if row.precision == precision]
        members.sort(key=lambda row: list(colours).index(row.engine))
        first = position
        for row in members:
            taken = measure.take(row)
            if taken is None:
                continue
            value, half = taken
            axes.bar(position, value, width=0.86, color=colours[row.engine])
            if half is not None:
                axes.errorbar(position, value, yerr=half, color=INK, linewidth=1, capsize=2.5)
            axes.text(
                position,
                value + (half or 0) + 0.02 * tallest,
                _carried(value, half),
                ha="center",
                va="bottom",
                fontsize=7.5,
            )
            position += 1
        ticks.append(((first + position - 1) / 2, precision.upper()))
        position += 0.8
    axes.set_xticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    # A single precision must not become one bar as wide as the panel.
    axes.set_xlim(-0.8, max(position - 0.8 - 0.2, 4.2))
    axes.set_ylim(0, 1.14 * tallest)
    axes.set_ylabel(measure.label)


def _carried(value: float, half: float | None) -> str:
    """Return the value with the digits that its interval carries."""
    if half is None:
        return number_text(value)
    return estimate_text(Estimate(value=value, low=value - half, high=value + half)).partition(" ±")[0]


def latency_against_throughput(record: Record) -> Figure | None:
    """Return a panel per network: median latency (log) against images/s, a point a row; None without rows.

    A row at batch 1 is a circle, a larger batch a square; precisions below FP32 are hollow.
    """
    rows = [row for row in good(record) if row.figures.latency_p50_s is not None]
    networks = list(dict.fromkeys(row.network for row in rows))
    if not rows:
        return None
    with rc_context(STYLE):
        columns = 2 if len(networks) > 1 else 1
        lines = -(-len(networks) // columns)
        figure, panels = _grid(lines, columns, 3.0)
        colours = engine_colours(record)
        cells = [axes for line in panels for axes in line]
        for axes in cells[len(networks) :]:
            axes.set_axis_off()
        for axes, network in zip(cells, networks, strict=False):
            members = [row for row in rows if row.network == network]
            for row in members:
                _point(axes, row, colours[row.engine])
            if record.limits is not None:
                kept = sorted((1000 * (row.figures.latency_p50_s or 0.0), _value(row)) for row in frontier(members))
                axes.plot(*zip(*kept, strict=True), **_FRONTIER)
            axes.set_xscale("log")
            axes.margins(0.14)
            axes.set_ylim(0)
            plain_ticks(axes)
            axes.set_title(network, loc="left", fontweight="bold", fontsize=10)
            axes.set_xlabel("median latency of a batch, ms")
            axes.set_ylabel("images/s")
        used = {name: colour for name, colour in colours.items() if any(row.engine == name for row in rows)}
        line = [("frontier", _FRONTIER)] if record.limits is not None else []
        _legend(figure, used, extra=[*_marks(rows), *line])
        return laid_out(figure)


def speed_against_accuracy(record: Record) -> Figure | None:
    """Return a panel per network and batch: images/s against the worst relative error (log), a point a row.

    Each point names its precision and its top-1 agreement with the reference. None without several precisions.
    """
    rows = [row for row in good(record) if row.figures.relative_error is not None]
    if len({row.precision for row in rows}) < 2:
        return None
    cases = list(dict.fromkeys((row.network, row.batch) for row in rows))
    with rc_context(STYLE):
        columns = 2 if len(cases) > 1 else 1
        figure, panels = _grid(-(-len(cases) // columns), columns, 3.2)
        colours = engine_colours(record)
        cells = [axes for line in panels for axes in line]
        for axes in cells[len(cases) :]:
            axes.set_axis_off()
        for axes, (network, batch) in zip(cells, cases, strict=False):
            _accuracy_panel(axes, [row for row in rows if (row.network, row.batch) == (network, batch)], colours)
            axes.set_title(f"{network}, batch {batch}", loc="left", fontweight="bold", fontsize=10)
        _legend(figure, {name: colour for name, colour in colours.items() if any(row.engine == name for row in rows)})
        return laid_out(figure)


def _accuracy_panel(axes: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    # An error of exactly 0 has no place on a logarithmic axis; FP32's last digit is as good.
    errors = {id(row): max(row.figures.relative_error or 0.0, 2.0**-24) for row in rows}
    middle = math.sqrt(min(errors.values()) * max(errors.values()))
    for row in rows:
        axes.errorbar(
            errors[id(row)],
            _value(row),
            yerr=half_width(row.figures.images_per_s) if row.figures.images_per_s is not None else None,
            marker="D" if row.precision == "auto" else "o",
            markersize=6,
            color=colours[row.engine],
            markerfacecolor=colours[row.engine] if row.precision in ("fp32", "auto") else "none",
            markeredgewidth=1.6,
            linewidth=1,
            capsize=2.5,
        )
    apart = LABELS_APART * max(_value(row) for row in rows)
    for side in (False, True):  # labels point into the panel, and are moved down where they would cover each other
        members = [row for row in rows if (errors[id(row)] > middle) is side]
        height = math.inf
        for row in sorted(members, key=_value, reverse=True):
            height = min(_value(row), height - apart)
            agreement = row.figures.top1_agreement
            axes.annotate(
                row.precision.upper() + ("" if agreement is None else f" {percent_text(agreement)}"),
                (errors[id(row)], height),
                xytext=(-9 if side else 9, 0),
                textcoords="offset points",
                ha="right" if side else "left",
                va="center",
                fontsize=7.5,
                color=colours[row.engine],
            )
    axes.set_xscale("log")
    axes.margins(0.14)
    axes.set_ylim(0)
    axes.set_xlabel("worst relative error of an image; left is more exact")
    axes.set_ylabel("images/s")


def frontier_of_settings(record: Record) -> Figure | None:
    """Return a panel per network and scope: images/s/W against images/s, the settings that none beats joined by a line.

    None without energy: then latency against throughput shows the choice.
    """
    rows = [row for row in good(record) if metered(row) is not None]
    panels_of = [
        (network, scope, members)
        for network in dict.fromkeys(row.network for row in rows)
        for scope, meter in energy_table.scopes(record)
        if (members := [row for row in rows if row.network == network and _meter(row) == meter])
    ]
    if not panels_of:
        return None
    with rc_context(STYLE):
        columns = 2 if len(panels_of) > 1 else 1
        figure, panels = _grid(-(-len(panels_of) // columns), columns, 3.0)
        colours = engine_colours(record)
        cells = [axes for line in panels for axes in line]
        for axes in cells[len(panels_of) :]:
            axes.set_axis_off()
        for axes, (network, scope, members) in zip(cells, panels_of, strict=False):
            for row in members:
                found = metered(row)
                if found is not None:
                    _mark(axes, row, row.figures.images_per_s, found.images_per_joule, colours[row.engine])
            kept = sorted((_speed_and_joule(row) for row in frontier(members)), key=lambda point: point[0])
            axes.plot(*zip(*kept, strict=True), **_FRONTIER)
            axes.set_xlim(0)
            axes.set_ylim(0)
            axes.set_title(f"{network}, {scope}", loc="left", fontweight="bold", fontsize=10)
            axes.set_xlabel("images/s")
            axes.set_ylabel("images/s/W")
        used = {name: colour for name, colour in colours.items() if any(row.engine == name for row in rows)}
        _legend(figure, used, extra=[*_marks(rows), ("frontier", _FRONTIER)])
        return laid_out(figure)


def _meter(row: Row) -> str | None:
    found = metered(row)
    return None if found is None else found.meter


def _speed_and_joule(row: Row) -> tuple[float, float]:
    found = metered(row)
    per_joule = found.images_per_joule if found is not None else None
    return _value(row), 0.0 if per_joule is None else per_joule.value


def _mark(axes: Axes, row: Row, across: Estimate | None, up: Estimate | None, colour: str) -> None:
    if across is None or up is None:
        return
    axes.errorbar(
        across.value,
        up.value,
        xerr=half_width(across),
        yerr=half_width(up),
        marker="o" if row.batch == 1 else "s",
        markersize=7,
        color=colour,
        markerfacecolor=colour if row.precision == "fp32" else "none",
        markeredgewidth=1.6,
        linewidth=1,
        capsize=2.5,
    )


def _point(axes: Axes, row: Row, colour: str) -> None:
    estimate, latency_s = row.figures.images_per_s, row.figures.latency_p50_s
    if estimate is None or latency_s is None:
        return
    axes.errorbar(
        1000 * latency_s,
        estimate.value,
        yerr=half_width(estimate),
        marker="o" if row.batch == 1 else "s",
        markersize=7,
        color=colour,
        markerfacecolor=colour if row.precision == "fp32" else "none",
        markeredgewidth=1.6,
        linewidth=1,
        capsize=2.5,
    )


def _marks(rows: Sequence[Row]) -> list[tuple[str, dict[str, Any]]]:
    """Return what the shapes mean, for those that occur."""
    marks: list[tuple[str, dict[str, Any]]] = []
    if any(row.batch == 1 for row in rows):
        marks.append(("batch 1", {"marker": "o", "markerfacecolor": INK}))
    larger = sorted({row.batch for row in rows if row.batch > 1})
    if larger:
        marks.append((f"batch {', '.join(map(str, larger))}", {"marker": "s", "markerfacecolor": INK}))
    lower = sorted({row.precision for row in rows if row.precision != "fp32"})
    if lower:
        marks.append((f"hollow: {', '.join(lower).upper()}", {"marker": "o", "markerfacecolor": "none"}))
    return marks


@dataclass(frozen=True)
class _Entry:
    """One bar of then and now; `engine` is None for a published row."""

    label: str
    batch: int
    images_per_s: float
    text: str
    engine: str | None


def then_and_now(record: Record) -> Figure | None:
    """Return the published rows of 2015 and today's fastest of each batch and precision on one axis; None without both.

    Bounds ("over 3000") are drawn as the number with its sign; the axis is logarithmic.
    """
    rows = good(record)
    networks = [name for name in dict.fromkeys(row.network for row in rows) if published(name)]
    if not networks:
        return None
    with rc_context(STYLE):
        lists = [_entries(network, [row for row in rows if row.network == network]) for network in networks]
        height = sum(0.21 * len(entries) + 0.8 for entries in lists)
        figure = Figure(figsize=(2 * PANEL_WIDTH_INCHES, height), layout="constrained")
        panels = figure.subplots(len(lists), 1, squeeze=False, height_ratios=[len(entries) + 2 for entries in lists])
        colours = engine_colours(record)
        for axes, network, entries in zip(panels[:, 0], networks, lists, strict=True):
            _then_and_now_panel(axes, entries, colours)
            axes.set_title(f"{network}: images/s, then (hatched) and now", loc="left", fontweight="bold", fontsize=10)
        return laid_out(figure)


def _then_and_now_panel(axes: Axes, entries: Sequence[_Entry], colours: dict[str, str]) -> None:
    hatched: dict[str, Any] = {"color": "none", "edgecolor": INK, "hatch": "////", "linewidth": 0.7, "alpha": 0.6}
    position = 0.0
    for index, entry in enumerate(entries):
        if index and entry.batch > 1 and entries[index - 1].batch == 1:
            position -= 0.6  # a gap between batch 1 and the large batches
        axes.barh(
            position, entry.images_per_s, height=0.72, **({"color": colours[entry.engine]} if entry.engine else hatched)
        )
        axes.text(entry.images_per_s * 1.04, position, entry.text, va="center", fontsize=8)
        across = axes.get_yaxis_transform()  # x in parts of the panel: 0 is its left edge
        place: dict[str, Any] = {
            "xy": (0, position),
            "xycoords": across,
            "xytext": (-5, 0),
            "textcoords": "offset points",
        }
        axes.annotate(entry.label, **place, va="center", ha="right", fontsize=8)
        position -= 1
    axes.set_yticks([])
    axes.set_xscale("log")
    axes.set_xlim(1, 2.2 * max(entry.images_per_s for entry in entries))
    axes.set_ylim(position + 0.4, 0.6)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _entries(network: str, rows: Sequence[Row]) -> list[_Entry]:
    """Return the bars of one network, batch 1 first, then the larger ones, each from slow to fast."""
    entries = []
    for row in published(network):
        kind = ", replication" if row.source == REPLICATION else ""
        sign = "" if row.relation == "=" else f"{row.relation} "
        label = f"2015, {row.device} {row.precision.upper()}, batch {row.batch}{kind}"
        entries.append(_Entry(label, row.batch, row.images_per_s, f"{sign}{row.images_per_s:,g}", None))
    fastest: dict[tuple[int, str], Row] = {}
    for measured in rows:
        known = fastest.get((measured.batch, measured.precision))
        if known is None or _value(measured) > _value(known):
            fastest[measured.batch, measured.precision] = measured
    for (batch, precision), measured in fastest.items():
        label = f"today, {measured.engine} {precision.upper()}, batch {batch}"
        entries.append(_Entry(label, batch, _value(measured), number_text(_value(measured)), measured.engine))
    return sorted(entries, key=lambda entry: (entry.batch > 1, entry.images_per_s))


def _value(row: Row) -> float:
    return row.figures.images_per_s.value if row.figures.images_per_s else 0.0


def _grid(lines: int, columns: int, line_inches: float) -> tuple[Figure, Any]:
    # Half an inch for the legend below the panels.
    figure = Figure(figsize=(PANEL_WIDTH_INCHES * columns, line_inches * lines + 0.5), layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False)


def laid_out(figure: Figure) -> Figure:
    """Return the figure with its layout solved and fixed: solving is half of the work, each file would repeat it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _legend(figure: Figure, colours: dict[str, str], extra: Sequence[tuple[str, dict[str, Any]]] = ()) -> None:
    marks: list[Any] = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
    marks += [Line2D([], [], label=name, **{"color": INK, "linestyle": "none", **style}) for name, style in extra]
    columns = min(len(marks), int(figure.get_figwidth() / 1.15))
    figure.legend(handles=marks, loc="outside lower left", ncols=columns, handlelength=1.2, fontsize=9)


def plain_ticks(axes: Axes) -> None:
    """Label the logarithmic x axis with plain numbers, between the powers of ten too where it spans few of them."""
    low, high = axes.get_xlim()
    digits = "2 5" if high > 8 * low else "2 3 5 7" if high > 3 * low else "1 2 3 4 5 6 7 8 9"

    def between(value: float, _: int) -> str:
        text = number_text(value, 1)
        return text if text.strip("0.,")[:1] in digits.split() else ""

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value, 1)))
    axes.xaxis.set_minor_formatter(FuncFormatter(between) if high < 30 * low else NullFormatter())


def svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element to stand inside a page, in the page's own text colour.

    `name` makes its inner identifiers its own, so that several can stand in one page. Its text is stable.
    """
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px sans-serif", text)
    # The page decides the width, up to one at which its text is as large as the page's; the picture keeps its shape.
    most = f"max-width: {1.6 * 72 * figure.get_figwidth():.0f}px"
    text = re.sub(r'<svg ([^>]*?)height="[\d.]+pt"', r"<svg \1", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" style="{most}" ', 1)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG on white, for places that show no SVG."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()
