"""Work as it goes, on one line of the terminal: a bar, figures, time left; and that of a run."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SHOWN = ("loss", "primal", "dual")


class ProgressLine:
    """A context that draws how far work is. Off a terminal it prints one line in the end instead."""

    def __init__(
        self,
        name: str,
        total: int,
        *,
        done: int = 0,
        figures: str = "",
        last: str = "",
        enabled: bool,
        console: Console | None,
    ):
        self._console = console or Console(stderr=True)
        self._start: dict[str, Any] = dict(description=name, total=total, completed=done, figures=figures)
        self._last = last  # what to print in the end; nothing if it is empty
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
        self._task = self._bar.add_task(**self._start)
        return self

    def draw(self, description: str, done: int, figures: str, last: str) -> None:
        """What goes on, how much is done, and the line that says so in the end."""
        self._bar.update(self._task, description=description, completed=done, figures=figures)
        self._last = last

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if not self._bar.disable:  # older versions of rich end even a bar that they never drew with an empty line
            self._bar.stop()
        if self._prints and self._last and error is None:  # also where the work stopped early
            self._console.print(self._last, markup=False, highlight=False, soft_wrap=True)


class RunProgress(ProgressLine):
    """The rounds of a run, with the figures of the latest record."""

    def __init__(self, stage: str, total: int, *, enabled: bool, console: Console | None):
        super().__init__(stage, total, figures="compiling", enabled=enabled, console=console)
        self._stage, self._total = stage, total

    def show(self, record: dict, done: int) -> None:
        """Draw a round's record; ``done`` rounds are behind us."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in _figures(record).items())
        last = f"{self._stage}: round {done} of {self._total}, {figures}"
        self.draw(f"{self._stage} {record['stage']}", done, figures, last)


def _figures(record: dict) -> dict[str, float]:
    return {name: record[name] for name in _SHOWN if name in record} | record.get("metrics", {})
