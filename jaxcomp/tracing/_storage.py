"""Which activations are in memory when: what is stored, what is overwritten, and what is computed on the way."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from jaxcomp._workload import Tensor


@dataclasses.dataclass(eq=False)
class _Buffer:
    """Memory for one activation after another, as each overwrites the last."""

    name: str
    elements: int
    born: float
    dies: float
    read: int = -1
    holders: int = 0  # arrays in it that are read again


@dataclasses.dataclass(eq=False)
class _Held:
    """An array that is in memory, or will be computed where it is read."""

    elements: int
    buffers: tuple[_Buffer, ...] = ()
    sources: tuple["_Held", ...] = ()  # what it will be computed from
    name: Callable[[], str] = str  # gives what to call it once it is stored
    variables: int = 1  # of the program that hold it and are read again


class _Storage:
    """The memory of a program as it runs, one operation after another.

    What an elementwise operation gives is not stored at once: a chain of them is computed where its end is stored, as
    any engine fuses them. It is stored before the next product, over an array of its size which nothing else needs,
    else in memory of its own.
    """

    def __init__(self) -> None:
        self.products = 0
        self.buffers: list[_Buffer] = []
        self.pending: dict[_Held, None] = {}  # not in memory yet though read again; in the order of the program

    @property
    def between(self) -> float:
        """The moment between the last product and the next."""
        return self.products - 0.5

    def stored(self, name: str, elements: int, moment: float | None = None) -> _Held:
        """An array in memory of its own, from now on if not said otherwise."""
        held = _Held(elements)
        self._put(held, [self._new(name, elements, self.between if moment is None else moment)])
        return held

    def fused(self, name: Callable[[], str], elements: int, sources: Iterable[_Held]) -> _Held:
        """An array that is computed from others where it is read."""
        held = _Held(elements, sources=tuple(sources), name=name)
        self.pending[held] = None
        return held

    def joined(self, name: Callable[[], str], elements: int, parts: Iterable[_Held]) -> _Held:
        """Arrays laid end to end: what is in memory already is written to its place at once, and not moved."""
        self.store_all()
        each = dict.fromkeys(parts)
        buffers = dict.fromkeys(buffer for part in each for buffer in part.buffers)
        missing = elements - sum(part.elements for part in each)
        if missing > 0:  # parts that are weights, or stand there twice
            buffers[self._new(name(), missing, self.between)] = None
        held = _Held(elements)
        self._put(held, buffers)
        self.touch(held)
        return held

    def touch(self, held: _Held, moment: float | None = None) -> None:
        """It is read, now if not said otherwise."""
        for buffer in _needed(held):
            buffer.dies = max(buffer.dies, self.between if moment is None else moment)

    def product(self, name: str, operands: Iterable[_Held], elements: int | None) -> _Held | None:
        """A product runs, and gives an array of so many elements, or none if they are weights."""
        self.store_all()
        number = self.products
        for held in operands:
            for buffer in held.buffers:
                buffer.dies, buffer.read = max(buffer.dies, number), number
        self.products += 1
        return None if elements is None else self.stored(name, elements, number)

    def store_all(self) -> None:
        """Write to memory what is read again."""
        needs = {held: list(dict.fromkeys(_needed(held, self.pending))) for held in self.pending}
        left = Counter(buffer for need in needs.values() for buffer in need)
        for held, need in needs.items():
            left.subtract(need)
            for buffer in need:
                buffer.dies = max(buffer.dies, self.between)
            free = [b for b in need if b.elements == held.elements and not b.holders and not left[b]]
            # The newest: in a sum of a residual and what goes around it, the residual is what ends.
            mine = max(free, key=lambda buffer: buffer.born, default=None)
            self._put(held, [mine or self._new(held.name(), held.elements, self.between)])
            held.sources = ()
        self.pending.clear()

    def hold(self, held: _Held | None) -> None:
        """One more variable holds it."""
        if held:
            held.variables += 1

    def release(self, held: _Held | None) -> None:
        """A variable that held it is read no more."""
        if held:
            held.variables -= 1
            if not held.variables:
                self.pending.pop(held, None)
                for buffer in held.buffers:
                    buffer.holders -= 1

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(Tensor(b.name, b.elements, b.born, b.dies, b.read) for b in self.buffers)

    def _new(self, name: str, elements: int, moment: float) -> _Buffer:
        self.buffers.append(_Buffer(name, elements, moment, moment))
        return self.buffers[-1]

    def _put(self, held: _Held, buffers: Iterable[_Buffer]) -> None:
        held.buffers = tuple(buffers)
        for buffer in held.buffers:
            buffer.holders += 1


def _needed(held: _Held, stored: Iterable[_Held] = ()) -> Iterator[_Buffer]:
    """The buffers that an array is in, or is computed from if others are stored by then."""
    seen, left = {held}, [held]
    while left:
        found = left.pop()
        yield from found.buffers
        for source in found.sources:
            if source not in seen and source not in stored:
                seen.add(source)
                left.append(source)
