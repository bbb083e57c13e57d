"""Where the numbers of an array come from: the inputs of a model, its leaves, or neither."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class _Origin(NamedTuple):
    """What is known of the numbers of an array.

    A leaf is still the one that feeds a product when it has been masked, scaled, rounded or normalised on the way:
    what it is combined with then has fewer numbers of its own (a scale for every output, a norm), however far they
    are spread. So the leaf is told by counting, and no operation needs a rule of its own.
    """

    leaves: tuple[str, ...] = ()  # whose numbers these are; several where none can be told to be the one
    numbers: int = 0  # how many of them are free: spreading adds none
    data: bool = False  # whether they change with the inputs
    axis: int | None = None  # along which leaves lie end to end, if that is how they are
    lengths: tuple[int, ...] = ()  # of every leaf along it


def _combined(ins: Sequence[_Origin], size: int) -> _Origin:
    """The origin of ``size`` numbers, each computed from some of those coming in."""
    told = [x for x in ins if x.numbers > 1] or ins  # one number for all (a scale, a place to slice at) tells nothing
    if any(x.data for x in told):
        return _Origin((), min(size, max(x.numbers for x in told)), data=True)
    most = max((x.numbers for x in told if x.leaves), default=0)
    if not most:
        return _Origin()
    return _Origin(_united(x for x in told if x.numbers == most), min(size, most))


def _gathered(ins: Sequence[_Origin], size: int) -> _Origin:
    """The origin of numbers that come in beside one another, or all together: every leaf counts."""
    numbers = min(size, sum(x.numbers for x in ins))
    if any(x.data for x in ins):
        return _Origin((), numbers, data=True)
    return _Origin(_united(ins), numbers)


def _laid(ins: Sequence[_Origin], lengths: Sequence[int], axis: int, size: int) -> _Origin:
    """The origin of arrays laid end to end along an axis: it is known which leaf is where if each is of one."""
    whole = _gathered(ins, size)
    if whole.data or any(len(x.leaves) != 1 for x in ins) or len(whole.leaves) < len(ins):
        return whole
    return whole._replace(axis=axis, lengths=tuple(lengths))


def _united(ins: Iterable[_Origin]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(leaf for x in ins for leaf in x.leaves))


def _step(origin: _Origin, steps: int) -> _Origin:
    """Of what one step of a loop sees of an array that is laid out over the steps."""
    return origin._replace(numbers=-(-origin.numbers // max(steps, 1)))
