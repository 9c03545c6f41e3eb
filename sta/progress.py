"""Progress with rate and time left: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from sta.distributed import ranks

SECONDS_BETWEEN_LINES = 15.0


class Bar:
    """Counts `total` units of work called `unit`; `note` shows what is worth seeing, such as a loss.

    Of the processes of a launch, only the main one shows it.
    """

    def __init__(self, title: str, total: int, unit: str, start: int = 0, shown: bool = True):
        shown = shown and ranks.is_main()
        self.title, self.total, self.unit, self.done, self.first = title, total, unit, start, start
        self.console = Console(stderr=True)
        self.shown, self.begun, self.last_line = shown, time.monotonic(), time.monotonic()
        self.progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=self.console, disable=not shown or not self.console.is_terminal, transient=True,
        )  # fmt: skip
        self.task = self.progress.add_task(title, total=total, completed=start, rate="", note="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.shown and kind is None:
            self._line(f"done in {time.monotonic() - self.begun:.0f} s")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count work done."""
        self.done += count
        rate = (self.done - self.first) / max(time.monotonic() - self.begun, 1e-6)
        self.progress.update(self.task, completed=self.done, rate=f"{rate:.1f} {self.unit}/s", note=note)
        quiet = time.monotonic() - self.last_line < SECONDS_BETWEEN_LINES
        if self.shown and not self.console.is_terminal and not quiet:
            left = (self.total - self.done) / max(rate, 1e-6)
            self._line(f"{self.done}/{self.total} {self.unit}, {rate:.1f}/s, {left:.0f} s left {note}")

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        self.console.print(f"{self.title}: {text}", highlight=False)
