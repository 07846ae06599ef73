"""Where a measurement stands, on a terminal: one moving line with the time that is left; a log gets a line a step."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from perwatt.lab.bench import Progress
from perwatt.lab.notation import duration_text


class Display:
    """Shows each Progress it is called with, until it is closed; use it in a `with`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            auto_refresh=False,  # a thread that redraws would disturb what is measured
        )
        self.held: list[str] = []
        self.task = self.bar.add_task("start", total=1.0, left="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show what is done now; `left_s` is a limit, for the measurement may be sure enough before it."""
        if self.console.is_terminal:
            left = f"at most {duration_text(progress.left_s)} left,"
            self.bar.update(self.task, completed=progress.done, description=progress.text, left=left, refresh=True)
        elif ": round" not in progress.text:  # rounds are too many for a log
            self.held.append(f"{100 * progress.done:3.0f}%  {progress.text}")
            # Until an engine is loaded the request may still turn out to be a mistake, which is to be one line.
            if ": load " in progress.text:
                self.console.print("\n".join(self.held), markup=False, soft_wrap=True)
                self.held.clear()
