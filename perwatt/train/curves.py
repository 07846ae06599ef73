"""The curves of a run, drawn from its event log: loss, top-1, learning rate, images/s and waiting, as PNG and SVG."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perwatt.package.atomic_file import write_whole
from perwatt.train.events import Event, history, read

# Okabe and Ito's colours, which people with any colour vision tell apart.
_TRAIN, _VALIDATION, _OTHER = "#0072B2", "#D55E00", "#009E73"
_INK = "#333338"
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "curves",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.2,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
# A picture has this many columns; more points in one show only their least and most.
COLUMNS = 800


def draw(log: Path, title: str) -> Figure:
    """Return the figure of a log's curves; a log without steps gives empty panels."""
    events = history(read(log))
    steps = [event for event in events if event.kind == "steps"]
    epochs = [event for event in events if event.kind == "epoch"]
    per_epoch = next((event.facts["steps_in_epoch"] for event in events if event.kind == "started"), 1)
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 6.0), layout="constrained")
        panels = figure.subplots(2, 2)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        loss, top1, rate, speed = panels.flat
        _line(loss, *_of(steps, "loss", per_epoch), _TRAIN, "training, as learned", thin=True)
        _line(loss, *_validated(epochs, "loss", per_epoch), _VALIDATION, "validation")
        loss.set_ylabel("loss")
        _line(top1, *_of(steps, "top1", per_epoch, 100), _TRAIN, "training, as learned", thin=True)
        _line(top1, *_validated(epochs, "top1", per_epoch, 100), _VALIDATION, "validation")
        _mark_best(top1, epochs, per_epoch)
        top1.set_ylabel("top-1, %")
        _line(rate, *_of(steps, "learning_rate", per_epoch), _OTHER, None)
        rate.set_ylabel("learning rate")
        rate.set_ylim(0)
        _line(speed, *_of(steps, "images_per_s", per_epoch), _OTHER, "images/s", thin=True)
        speed.set_ylabel("images/s")
        speed.set_ylim(0)
        waiting = speed.twinx()
        waiting.grid(visible=False)
        _line(waiting, *_of(steps, "waiting", per_epoch, 100), _VALIDATION, "waiting for data, %", thin=True)
        waiting.set_ylim(0, 100)
        waiting.set_ylabel("share of time waiting for data, %")
        waiting.spines["right"].set_visible(True)
        for axes in panels.flat:
            axes.set_xlabel("epoch")
            axes.set_xlim(0)
        for axes in (loss, top1):
            axes.legend(fontsize=8)
        speed.legend([*speed.get_lines(), *waiting.get_lines()], ["images/s", "waiting for data"], fontsize=8)
        return figure


def write(log: Path, title: str, folder: Path) -> tuple[Path, Path]:
    """Write curves.png and curves.svg into a folder; return their paths. Raises OutputError."""
    figure = draw(log, title)
    paths = (folder / "curves.png", folder / "curves.svg")
    with rc_context(_STYLE):
        options: tuple[dict[str, Any], ...] = ({"dpi": 130}, {"metadata": {"Date": None, "Creator": None}})
        for path, its in zip(paths, options, strict=True):
            buffer = BytesIO()
            figure.savefig(buffer, format=path.suffix[1:], facecolor="white", **its)
            write_whole(path, buffer.getvalue())
    return paths


def thinned(across: Sequence[float], up: Sequence[float], columns: int = COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve with at most two points for each of so many columns: the least and the most of those in it.

    No peak is lost, as it would be by taking every hundredth point.
    """
    x, y = np.asarray(across, dtype=float), np.asarray(up, dtype=float)
    if len(x) <= 2 * columns:
        return x, y
    kept: list[int] = []
    for group in np.array_split(np.arange(len(x)), columns):
        kept += sorted({int(group[np.argmin(y[group])]), int(group[np.argmax(y[group])])})
    return x[kept], y[kept]


def _of(events: Sequence[Event], name: str, per_epoch: int, times: float = 1.0) -> tuple[list[float], list[float]]:
    points = [(event.facts["step"] / per_epoch, times * event.facts[name]) for event in events]
    return [x for x, _ in points], [y for _, y in points]


def _validated(
    epochs: Sequence[Event], name: str, per_epoch: int, times: float = 1.0
) -> tuple[list[float], list[float]]:
    points = [(event.facts["step"] / per_epoch, times * event.facts["validation"][name]) for event in epochs]
    return [x for x, _ in points], [y for _, y in points]


def _line(
    axes: Axes, across: list[float], up: list[float], colour: str, label: str | None, *, thin: bool = False
) -> None:
    x, y = thinned(across, up)
    marker = "o" if len(x) <= 30 and not thin else ""
    style: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.75} if thin else {"linewidth": 1.8}
    axes.plot(x, y, color=colour, label=label, marker=marker, markersize=3.5, **style)


def _mark_best(axes: Axes, epochs: Sequence[Event], per_epoch: int) -> None:
    best = [event for event in epochs if event.facts["best"]]
    if best:
        at, value = best[-1].facts["step"] / per_epoch, 100 * best[-1].facts["validation"]["top1"]
        best_style: dict[str, Any] = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.5}
        axes.plot([at], [value], "o", color=_VALIDATION, label=f"best: {value:.2f} %", **best_style)
