"""Where training stands, on a terminal: one moving line, and a line an epoch; a log gets the lines only."""

import math
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from perwatt.train.loop import Progress

_HEAD = "epoch     loss   top-1   validation: loss   top-1   top-5   images/s   waiting"


class Display:
    """Shows each Progress it is called with, until it is closed; use it in a `with`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            auto_refresh=False,  # a thread that redraws would take time from a step
        )
        self.task = self.bar.add_task("start", total=1.0)
        self.headed = False

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show what is done now."""
        if progress.validation is not None:
            self.say(_epoch_line(progress), head=True)
        if self.console.is_terminal:
            done = progress.step / progress.steps
            self.bar.update(self.task, completed=done, description=_moving_line(progress), refresh=True)

    def say(self, text: str, *, head: bool = False) -> None:
        """Print a line that stays."""
        if head and not self.headed:
            self.console.print(_HEAD, markup=False, soft_wrap=True)
            self.headed = True
        self.console.print(text, markup=False, soft_wrap=True)

    def doing(self, text: str) -> None:
        """Show what goes on beside training: reading pictures, exporting."""
        if self.console.is_terminal:
            self.bar.update(self.task, description=text, refresh=True)


def time_text(seconds: float | None) -> str:
    """Return '1 h 04 min', '3 min 20 s' or '12 s'."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _moving_line(progress: Progress) -> str:
    if progress.text != "training":
        return f"epoch {progress.epoch + 1} of {progress.epochs}: {progress.text}"
    return (
        f"epoch {progress.epoch + 1} of {progress.epochs}, loss {progress.loss:.3f}, "
        f"top-1 {100 * progress.top1:.1f} %, {progress.images_per_s:,.0f} images/s, "
        f"{100 * progress.waiting:.0f} % waiting for data, {time_text(progress.left_s)} left"
    )


def _epoch_line(progress: Progress) -> str:
    score = progress.validation
    assert score is not None
    return (
        f"{progress.epoch + 1:5d} {progress.loss:8.4f} {100 * progress.top1:6.2f}% {score.loss:18.4f} "
        f"{100 * score.top1:6.2f}% {100 * score.top5:6.2f}% {progress.images_per_s:10,.0f} "
        f"{100 * progress.waiting:8.1f}%"
    )
