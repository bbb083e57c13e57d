"""What moving numbers about does to the labels of their arrays' axes."""

import math
from typing import Any

from jaxcomp.tracing._atoms import (
    _Atom,
    _axes,
    _axis,
    _cut,
    _end_to_end,
    _fix,
    _is_fixed,
    _Label,
    _leaves,
    _length,
    _regroup,
    _unify,
)
from jaxcomp.tracing._labels import _changed, _made, _rule, _unified, _unknown, _Value


@_rule("transpose")
def _transpose(eqn: Any, ins: list[_Value]) -> list[_Value]:
    return [_made(ins, (ins[0].labels[axis] for axis in eqn.params["permutation"]))]


@_rule("broadcast_in_dim")
def _broadcast(eqn: Any, ins: list[_Value]) -> list[_Value]:
    labels, new = list(_axes(eqn.params["shape"])), set[_Atom]()
    source = dict(zip(eqn.params["broadcast_dimensions"], ins[0].labels, strict=True))
    for axis, label in enumerate(labels):
        if source.get(axis):
            labels[axis] = source[axis]
        else:
            new.update(label)
    return [_made(ins, labels, new, ins[0].fill)]


@_rule("tile")
def _tile(eqn: Any, ins: list[_Value]) -> list[_Value]:
    copies = _axes(eqn.params["reps"])
    labels = [(*copy, *label) for copy, label in zip(copies, ins[0].labels, strict=True)]
    return [_made(ins, labels, {atom for copy in copies for atom in copy}, ins[0].fill)]


@_rule("reshape")
def _reshape(eqn: Any, ins: list[_Value]) -> list[_Value]:
    sizes = eqn.outvars[0].aval.shape
    labels = None
    if eqn.params.get("dimensions") is None and math.prod(sizes):
        labels = _regroup(tuple(atom for label in ins[0].labels for atom in label), sizes)
    if labels is None:
        return _unknown(eqn, ins)
    return [_made(ins, labels, fill=ins[0].fill)]


@_rule("squeeze")
def _squeeze(eqn: Any, ins: list[_Value]) -> list[_Value]:
    gone = eqn.params["dimensions"]
    return [_made(ins, (label for axis, label in enumerate(ins[0].labels) if axis not in gone), fill=ins[0].fill)]


@_rule("concatenate")
def _concatenate(eqn: Any, ins: list[_Value]) -> list[_Value]:
    axis = eqn.params["dimension"]
    labels = _unified(ins, but=axis)
    parts = [value.labels[axis] for value in ins]
    if all(map(_is_fixed, parts)):
        labels[axis] = _axis(eqn.outvars[0].aval.shape[axis], "it is laid end to end of what cannot be pruned")
    else:
        labels[axis] = _end_to_end(parts)
    return [_made(ins, labels)]


@_rule("stack")
def _stack(eqn: Any, ins: list[_Value]) -> list[_Value]:
    labels = _unified(ins)
    labels.insert(eqn.params["axis"], _axis(len(ins), "it counts what is laid end to end"))
    return [_made(ins, labels)]


@_rule("slice")
def _slice(eqn: Any, ins: list[_Value]) -> list[_Value]:
    params, labels = eqn.params, ins[0].labels
    strides = params["strides"] or (1,) * len(labels)
    cuts = zip(labels, params["start_indices"], params["limit_indices"], strides, strict=True)
    return [_made(ins, [_sliced(*cut) for cut in cuts])]


@_rule("split")
def _split(eqn: Any, ins: list[_Value]) -> list[_Value]:
    axis, labels, begin, outs = eqn.params["axis"], ins[0].labels, 0, []
    for size in map(int, eqn.params["sizes"]):
        part = _sliced(labels[axis], begin, begin + size, 1)
        outs.append(_made(ins, (*labels[:axis], part, *labels[axis + 1 :])))
        begin += size
    return outs


def _sliced(label: _Label, start: int, limit: int, stride: int) -> _Label:
    """The part of an axis between two places."""
    size = _length(label)
    if (start, limit, stride) == (0, size, 1):
        return label
    count = max(0, -(-(limit - start) // stride))
    if stride == 1 and count and not _is_fixed(label):
        after = _cut(label, start)
        part = _cut(after[1], count) if after else None
        if part:
            return part[0]
    return _changed(label, count, "a slice takes some of it")


@_rule("pad")
def _pad(eqn: Any, ins: list[_Value]) -> list[_Value]:
    labels = list(ins[0].labels)
    for axis, (low, high, between) in enumerate(eqn.params["padding_config"]):
        if (low, high, between) == (0, 0, 0):
            continue
        if min(low, high) < 0 or between or _is_fixed(labels[axis]):
            labels[axis] = _changed(labels[axis], eqn.outvars[0].aval.shape[axis], "it is padded")
        else:
            ends = [(_axis(n, "it is padding"),) if n else () for n in (low, high)]
            labels[axis] = _end_to_end([*ends[0], labels[axis], *ends[1]])
    zeros = ins[1].fill is not None and ins[1].fill == 0
    return [_made(ins, labels, () if zeros else _leaves(atom for label in labels for atom in label))]


@_rule("iota")
def _iota(eqn: Any, ins: list[_Value]) -> list[_Value]:
    labels = list(_axes(eqn.params["shape"]))
    _fix((labels[eqn.params["dimension"]],), "iota numbers it")
    return [_made(ins, labels, {atom for label in labels for atom in label})]


@_rule("dynamic_slice")
def _dynamic_slice(eqn: Any, ins: list[_Value]) -> list[_Value]:
    sizes = zip(ins[0].labels, eqn.params["slice_sizes"], strict=True)
    labels = [x if _length(x) == n else _changed(x, n, "dynamic_slice takes some of it") for x, n in sizes]
    return [_made(ins, labels)]


@_rule("dynamic_update_slice")
def _dynamic_update_slice(eqn: Any, ins: list[_Value]) -> list[_Value]:
    for old, new in zip(ins[0].labels, ins[1].labels, strict=True):
        if _length(old) == _length(new):
            _unify(old, new)
        else:
            _fix((old, new), "dynamic_update_slice writes to some of it")
    return [_made(ins, ins[0].labels)]


@_rule("gather")
def _gather(eqn: Any, ins: list[_Value]) -> list[_Value]:
    """Axes that are taken whole pass, as the features of an embedding do; the others are looked up in."""
    (table, where), numbers, reason = ins, eqn.params["dimension_numbers"], "gather looks it up"
    shape = eqn.outvars[0].aval.shape
    shared = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    passed = []
    for axis, (label, size) in enumerate(zip(table.labels, eqn.params["slice_sizes"], strict=True)):
        if axis in shared:
            _unify(label, where.labels[shared[axis]])
        elif _length(label) != size:
            label = _changed(label, size, reason)
        if axis not in shared and axis not in numbers.collapsed_slice_dims:
            passed.append(label)
    looked_up = iter(where.labels[:-1])
    offsets = dict(zip(numbers.offset_dims, passed, strict=True))
    return [_made(ins, [offsets[i] if i in offsets else next(looked_up) for i in range(len(shape))])]
