"""The pictures of an evaluation: what is taken for what, how far confidence may be believed, and the worst mistakes."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from perwatt.lab.evaluation.figures import whole
from perwatt.lab.evaluation.proportions import wilson
from perwatt.lab.evaluation.record import EvaluationRecord, Figures, Row
from perwatt.lab.evaluation.terminal import main_row, mixed_up, share_text
from perwatt.lab.notation import number_text
from perwatt.lab.pictures import INK, STYLE, laid_out, png
from perwatt.lab.record import unpack
from perwatt.package.atomic_file import write_whole
from perwatt.package.preprocessing import Photo

MOST_CLASSES = 30
COLUMNS = 6
_RIGHT, _WRONG, _SAID = "#0072B2", "#D55E00", "#E69F00"
_LONGEST_NAME = 22


def write(record: EvaluationRecord, beside: Path, photo: Callable[[int], Photo] | None) -> tuple[Path, ...]:
    """Write the pictures beside the Record as PNG and return their paths; `photo` returns the image at a place.

    Without `photo` (a Record read again, its data elsewhere) there are no mistakes to show. Raises OutputError.
    """
    row = main_row(record)
    if row is None or row.figures is None:
        return ()
    stem = beside.name.removesuffix(".gz").removesuffix(".json")
    drawn = {"confusion": confusion(record, row.figures), "calibration": calibration(record, row)}
    if photo is not None and row.figures.mistakes:
        drawn["mistakes"] = mistakes(record, row, photo)
    paths = []
    for name, figure in drawn.items():
        paths.append(beside.with_name(f"{stem}-{name}.png"))
        write_whole(paths[-1], png(figure))
    return tuple(paths)


def confusion(record: EvaluationRecord, figures: Figures) -> Figure:
    """Return the confusion matrix: rows are what images are, in shares of their class; numbers are counts.

    Of more than MOST_CLASSES classes those that are mixed up most are shown.
    """
    seen = [place for place, each in enumerate(figures.classes) if each.images or each.said]
    if len(seen) > MOST_CLASSES:
        often: dict[int, int] = {}
        for pair in mixed_up(figures):
            for place in (pair.label, pair.said):
                often[place] = often.get(place, 0) + pair.images
        seen = sorted(sorted(seen, key=lambda place: -often.get(place, 0))[:MOST_CLASSES])
    at = {place: number for number, place in enumerate(seen)}
    counts = np.zeros((len(seen), len(seen)), np.int64)
    for pair in figures.confusions:
        if pair.label in at and pair.said in at:
            counts[at[pair.label], at[pair.said]] = pair.images
    totals = np.array([max(figures.classes[place].images, 1) for place in seen])
    names = [_short(record.data.classes[place]) for place in seen]
    side = max(3.6, 0.36 * len(seen) + 1.6)
    with rc_context(STYLE):
        figure = Figure(figsize=(side + 0.4, side), layout="constrained")
        axes = figure.subplots()
        for (row, column), count in np.ndenumerate(counts):
            share = count / totals[row]
            colour = _RIGHT if row == column else _WRONG
            # The root lets one mistake in a thousand be seen.
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, alpha=math.sqrt(share), linewidth=0)
            )
            if count:
                ink = "white" if math.sqrt(share) > 0.65 else INK
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7, color=ink)
        axes.set(xlim=(-0.5, len(seen) - 0.5), ylim=(len(seen) - 0.5, -0.5), xlabel="said", ylabel="is", aspect="equal")
        axes.set_xticks(range(len(seen)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(seen)), names)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        hidden = len([each for each in figures.classes if each.images or each.said]) - len(seen)
        more = f"; {hidden} classes that are mixed up less are left out" if hidden else ""
        axes.set_title(f"top-1 {share_text(figures.top1)}{more}", fontsize=9, loc="left")
        return laid_out(figure)


def calibration(record: EvaluationRecord, row: Row) -> Figure:
    """Return the reliability diagram: the share that is right against the confidence, and how often each occurs."""
    figures = row.figures
    assert figures is not None
    width = 1 / len(figures.bins)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", alpha=0.6)
        for each in figures.bins:
            if not each.images or each.confidence is None:
                continue
            right = wilson(each.right, each.images)
            assert right is not None
            middle = each.above + width / 2
            above.bar(middle, right.value, width * 0.94, color=_RIGHT)
            above.plot([middle] * 2, [right.low, right.high], color=INK, linewidth=0.9)
            said = (each.above + width * 0.05, each.above + width * 0.95)
            above.plot(said, [each.confidence] * 2, color=_SAID, linewidth=2.2, solid_capstyle="butt")
            below.bar(middle, each.images, width * 0.94, color=INK, alpha=0.55)
        marks = [
            Patch(facecolor=_RIGHT, label="right"),
            Line2D([], [], color=_SAID, linewidth=2.2, label="confidence"),
            Line2D([], [], color=INK, linewidth=0.9, label="95 % interval"),
        ]
        figure.legend(handles=marks, loc="outside lower left", ncols=3, fontsize=8)
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
        kind = "confidence" if record.probabilities else "confidence (softmax of the outputs)"
        below.set(xlabel=kind, ylabel="images", yscale="log" if figures.images > 100 else "linear")
        if figures.images > 100:
            below.set_ylim(bottom=0.7)
            below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value, 1)))
            below.yaxis.set_minor_formatter(NullFormatter())
        side = "more sure than right" if figures.mean_confidence > figures.top1.value else "less sure than right"
        above.set_title(
            f"calibration error {figures.ece:.3f}, {side} on the whole\n"
            f"({100 * figures.mean_confidence:.1f} % sure, {100 * figures.top1.value:.1f} % right)",
            fontsize=8,
            loc="left",
        )
        return laid_out(figure)


def mistakes(record: EvaluationRecord, row: Row, photo: Callable[[int], Photo]) -> Figure:
    """Return the images whose wrong answers were the surest, each with what was said and what it is."""
    assert row.figures is not None
    assert row.answers is not None
    places = row.figures.mistakes
    said, labels = whole(row.answers.said), whole(record.data.labels)
    sure, own = unpack(row.answers.confidence), unpack(row.answers.label_confidence)
    lines = -(-len(places) // COLUMNS)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.65 * COLUMNS, 2.15 * lines + 0.3), layout="constrained")
        panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, place in zip(panels, places, strict=False):
            pixels = np.asarray(photo(place))
            small = max(pixels.shape[:2]) < 64
            axes.imshow(pixels, interpolation="nearest" if small else "antialiased")
            names = record.data.classes
            axes.set_title(f"{_short(names[said[place]])}, {100 * sure[place]:.0f} %", fontsize=8, color=_WRONG, pad=3)
            is_text = f"is {_short(names[labels[place]])}, {100 * own[place]:.0f} %"
            axes.text(0.5, -0.04, is_text, transform=axes.transAxes, ha="center", va="top", fontsize=7, color=_RIGHT)
        figure.suptitle(
            f"surest mistakes of {row.engine} {row.precision.upper()}: said (orange) and is (blue)", fontsize=9
        )
        return laid_out(figure)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
