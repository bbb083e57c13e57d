"""Times of programs that take turns, so that a machine's moods fall on all of them alike."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

_REST_S = 0.1  # PyTorch's and ONNX Runtime's threads wait for more work by spinning for some milliseconds
_WARM_S = 0.05  # after a rest a virtual core takes some milliseconds to be as fast as before


class Times(NamedTuple):
    """Seconds of every run of one program: by the clock, and of all its cores together."""

    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def pin(cores: int) -> None:
    """Keep this process to so many cores; libraries that are loaded afterwards start as many threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def in_turns(programs: dict[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Run every program once uncounted, then all of them in turn, ``repeats`` times over."""
    return _take_turns({name: lambda run=run: _timed(run) for name, run in programs.items()}, repeats)


def in_turns_apart(
    builders: dict[str, Callable[[], Callable[[], object]]], repeats: int, warm: bool = False
) -> dict[str, Times]:
    """The same, each program built and run in a process of its own, as its users would.

    What one library does to the allocator and to the threads of a process changes the speed of another there: a
    PyTorch loop of small tensors runs a quarter faster once other code has freed large blocks of memory.
    Before a turn all rest, so that threads that spin while they wait take no core from the next program.
    With ``warm`` each runs uncounted for as long as any other in its turn, right before it is timed: what runs for
    milliseconds only else pays for threads that have to wake up and for caches that others have filled.
    Builders must be importable: functions of modules, or `functools.partial` of them.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(build, warm)) for name, build in builders.items()}
        return _take_turns(workers, repeats)


def _take_turns(programs: dict[str, Callable[[], tuple[float, float]]], repeats: int) -> dict[str, Times]:
    times = {name: Times([], []) for name in programs}
    for program in programs.values():
        program()
    for _ in range(repeats):
        for name, program in programs.items():
            wall, cpu = program()
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
    return times


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def _worker(build, warm):
    """A call that runs the program once, elsewhere, and returns its times."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(build, warm, there), daemon=True)
    process.start()
    there.close()
    here.recv()  # one is built after another: some measure while they are built

    def run():
        time.sleep(_REST_S)
        here.send(None)
        return here.recv()

    try:
        yield run
    finally:
        here.close()
        process.join()


def _serve(build, warm, pipe) -> None:
    program = build()
    pipe.send("built")
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        end = time.perf_counter() + _WARM_S
        while warm and time.perf_counter() < end:
            program()
        pipe.send(_timed(program))


def ratio(a: Times, b: Times, clock: str = "wall") -> float:
    """Median over turns of a's time by b's."""
    return statistics.median(x / y for x, y in zip(getattr(a, clock), getattr(b, clock), strict=True))
