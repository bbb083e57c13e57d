"""Times of programs that take turns, so that a machine's moods fall on all of them alike."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Times(NamedTuple):
    """Seconds of every run of one program: by the clock, and of all its cores together."""

    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def in_turns(programs: dict[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Run every program once uncounted, then all of them in turn, ``repeats`` times over."""
    times = {name: Times([], []) for name in programs}
    for program in programs.values():
        program()
    for _ in range(repeats):
        for name, program in programs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            program()
            times[name].wall.append(time.perf_counter() - wall)
            times[name].cpu.append(time.process_time() - cpu)
    return times


def ratio(a: Times, b: Times, clock: str = "wall") -> float:
    """Median over turns of a's time by b's."""
    return statistics.median(x / y for x, y in zip(getattr(a, clock), getattr(b, clock), strict=True))
