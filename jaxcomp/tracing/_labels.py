"""What is known of the axes of an array in a traced program, and the rules that operations go by, by name."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxcomp.tracing._atoms import _Atom, _axes, _axis, _fix, _Label, _unify


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of an array."""

    labels: tuple[_Label, ...]
    data: bool = False  # whether it depends on the inputs; what follows says nothing then
    loud: frozenset[_Atom] = frozenset()  # atoms whose channels need not be zero here when all their members are
    fill: Any = None  # the one number that it holds throughout, if known


_Rule = Callable[[Any, list[_Value]], list[_Value]]
_RULES: dict[str, _Rule] = {}


def _rule(names: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(names.split(), rule))
        return rule

    return register


def _constant(shape: Sequence[int], reason: str) -> _Value:
    labels = _axes(shape, reason)
    return _Value(labels, loud=frozenset(atom for label in labels for atom in label))


def _made(of: Sequence[_Value], labels: Iterable[_Label], new: Iterable[_Atom] = (), fill: Any = None) -> _Value:
    """An array made of others that is zero where they are, but for atoms that are new."""
    data = any(value.data for value in of)
    loud = frozenset() if data else frozenset(new).union(*(value.loud for value in of))
    return _Value(tuple(labels), data, loud, fill)


def _unknown(eqn: Any, ins: list[_Value]) -> list[_Value]:
    """Nothing may be pruned that an operation touches which is not understood."""
    reason = f"{eqn.primitive.name} is not understood"
    _fix((label for value in ins for label in value.labels), reason)
    return [dataclasses.replace(_constant(var.aval.shape, reason), data=True) for var in eqn.outvars]


def _changed(label: _Label, size: int, reason: str) -> _Label:
    """The axis of another length that comes of an axis which may not be pruned."""
    _fix((label,), reason)
    return _axis(size, reason)


def _unified(values: Sequence[_Value], but: int | None = None) -> list[_Label]:
    """The axes of arrays of one shape made the same, but for one axis; a length of 1 goes with any other."""
    # Beside data, an array that is one number throughout says nothing: zeros that two layers share do not couple them.
    data = any(value.data for value in values)
    labels: list[_Label] = []
    for axis in range(max(len(value.labels) for value in values)):
        long = [value for value in values if value.labels and value.labels[axis]]
        told = [value for value in long if value.fill is None or not data] or long[:1]
        for other in told[1:] if axis != but else ():
            _unify(told[0].labels[axis], other.labels[axis])
        labels.append(told[0].labels[axis] if told else ())
    return labels
