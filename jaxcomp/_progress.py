"""A run as it goes: stage, round, loss, residuals, time left, on one line of the terminal."""

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

_SHOWN = ("loss", "primal", "dual")


class RunProgress:
    """A context whose `show` draws the latest record. Off a terminal it prints one line in the end instead."""

    def __init__(self, stage: str, total: int, *, enabled: bool, console: Console | None):
        self._console = console or Console(stderr=True)
        self._stage, self._total, self._last = stage, total, ""
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
        self._task = self._bar.add_task(self._stage, total=self._total, figures="compiling")
        return self

    def show(self, record: dict, done: int) -> None:
        """Draw a round's record; ``done`` rounds are behind us."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in _figures(record).items())
        self._bar.update(self._task, description=f"{self._stage} {record['stage']}", completed=done, figures=figures)
        self._last = f"{self._stage}: round {done} of {self._total}, {figures}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if not self._bar.disable:  # older versions of rich end even a bar that they never drew with an empty line
            self._bar.stop()
        if self._prints and self._last and error is None:  # also where the run stopped early
            self._console.print(self._last, markup=False, highlight=False, soft_wrap=True)


def _figures(record: dict) -> dict[str, float]:
    return {name: record[name] for name in _SHOWN if name in record} | record.get("metrics", {})
