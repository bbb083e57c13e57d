"""A sweep as it goes: how many of its configurations are done, found, and have diverged."""

from rich.console import Console

from jaxcomp._progress import ProgressLine


class SweepProgress(ProgressLine):
    """The configurations of a sweep."""

    def __init__(self, doing: str, total: int, found: int, *, enabled: bool, console: Console | None):
        self._doing, self._total, self._done, self._diverged = doing, total, found, 0
        self._found = [f"{found} found in the store"] if found else []
        super().__init__(
            "sweep",
            total,
            done=found,
            figures=", ".join(self._found),
            last=self._summary(),
            enabled=enabled,
            console=console,
        )

    def show(self, doing: str = "", *, done: int = 0, diverged: int = 0) -> None:
        """Draw what goes on, if that is new; so many more configurations are done, and so many have diverged."""
        self._doing = doing or self._doing
        self._done += done
        self._diverged += diverged
        self.draw(f"sweep, {self._doing}", self._done, ", ".join(self._figures()), self._summary())

    def _figures(self) -> list[str]:
        return self._found + ([f"{self._diverged} diverged"] if self._diverged else [])

    def _summary(self) -> str:
        return ", ".join([f"sweep: {self._done} of {self._total} configurations", *self._figures()])
