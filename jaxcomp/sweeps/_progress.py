"""A sweep as it goes: how many of its configurations are done, on one line of the terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class SweepProgress:
    """A context in which `show` draws how far it is. Off a terminal it prints one line in the end instead."""

    def __init__(self, doing: str, total: int, found: int, *, enabled: bool, console: Console | None):
        self._console = console or Console(stderr=True)
        self._doing, self._total, self._done, self._diverged = doing, total, found, 0
        self._found = f", {found} found in the store" if found else ""
        self._prints = enabled and not self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )

    def __enter__(self) -> Self:
        if not self._bar.disable:
            self._bar.start()
        self._task = self._bar.add_task("sweep", total=self._total, completed=self._done, figures=self._found[2:])
        return self

    def show(self, doing: str = "", *, done: int = 0, diverged: int = 0) -> None:
        """Draw what goes on, if that is new; so many more configurations are done, and so many have diverged."""
        self._doing = doing or self._doing
        self._done += done
        self._diverged += diverged
        figures = ", ".join(filter(None, (self._found[2:], self._lost()[2:])))
        self._bar.update(self._task, description=f"sweep, {self._doing}", completed=self._done, figures=figures)

    def _lost(self) -> str:
        return f", {self._diverged} diverged" if self._diverged else ""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if not self._bar.disable:
            self._bar.stop()
        if self._prints and error is None:
            line = f"sweep: {self._done} of {self._total} configurations{self._found}{self._lost()}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
