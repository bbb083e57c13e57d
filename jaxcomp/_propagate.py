"""What every operation of a traced program does to the labels of its arrays' axes."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxcomp._atoms import (
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


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of an array."""

    labels: tuple[_Label, ...]
    data: bool = False  # whether it depends on the inputs; what follows says nothing then
    loud: frozenset[_Atom] = frozenset()  # atoms whose channels need not be zero here when all their members are
    fill: Any = None  # the one number that it holds throughout, if known


_Rule = Callable[[Any, list[_Value]], list[_Value]]
_RULES: dict[str, _Rule] = {}
_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)


def _rule(names: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(names.split(), rule))
        return rule

    return register


def _run(jaxpr: Any, args: Sequence[_Value]) -> list[_Value]:
    """Carry labels through a program."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    known = dict(zip(jaxpr.invars, args, strict=True))
    known.update((var, _constant(var.aval.shape, "a constant of the program has it")) for var in jaxpr.constvars)

    def value(var: Any) -> _Value:
        return _Value((), fill=var.val) if isinstance(var, Literal) else known[var]  # literals are scalars

    for eqn in jaxpr.eqns:
        outputs = _RULES.get(eqn.primitive.name, _unknown)(eqn, [value(var) for var in eqn.invars])
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [value(var) for var in jaxpr.outvars]


def _read(jaxpr: Any) -> set[int]:
    """Numbers of the inputs that a program does anything with, but hand them on to a part that does not."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    used = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    for eqn in jaxpr.eqns:
        inner = _read(_body(eqn)) if eqn.primitive.name in _CALLS else range(len(eqn.invars))
        used |= {eqn.invars[i] for i in inner if not isinstance(eqn.invars[i], Literal)}
    return {number for number, var in enumerate(jaxpr.invars) if var in used}


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


@_rule(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj convert_element_type copy copy_p "
    "cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log "
    "log1p logistic lt max min mul ne neg nextafter not or pow real reduce_precision rem round rsqrt select_n sign sin "
    "sinh sqrt square stop_gradient sub tan tanh xor"
)
def _elementwise(eqn: Any, ins: list[_Value]) -> list[_Value]:
    labels = _unified(ins)
    if any(value.data for value in ins):
        return [_Value(tuple(labels), data=True)]

    def loud(value: _Value) -> set[_Atom]:
        if value.fill is not None and value.fill == 0:
            return set()
        own = value.labels or ((),) * len(labels)
        missing = {leaf for label, mine in zip(labels, own, strict=True) if not mine for leaf in _leaves(label)}
        return missing | _leaves(value.loud)

    def at_zero() -> Any:
        """The result where every number that is not known is zero."""
        zeros = [0 if value.fill is None else value.fill for value in ins]
        with jax.ensure_compile_time_eval():
            scalars = [jnp.asarray(z, var.aval.dtype) for z, var in zip(zeros, eqn.invars, strict=True)]
            return np.asarray(eqn.primitive.bind(*scalars, **eqn.params)).item()

    name = eqn.primitive.name
    if all(value.fill is not None for value in ins):
        return [_Value(tuple(labels), fill=at_zero())]
    if name == "mul":
        heard = set.intersection(*map(loud, ins))
    elif name == "div":
        heard = loud(ins[0])
    elif name == "select_n":
        heard = set().union(*map(loud, ins[1:]))
    elif at_zero() == 0:
        heard = set().union(*(loud(value) for value in ins if value.fill is None))
    else:
        heard = _leaves(atom for label in labels for atom in label)
    return [_Value(tuple(labels), loud=frozenset(heard))]


@_rule(" ".join(_CALLS))
def _call(eqn: Any, ins: list[_Value]) -> list[_Value]:
    return _run(_body(eqn), ins)


def _body(eqn: Any) -> Any:
    return next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)


@_rule("optimization_barrier sharding_constraint")
def _same(eqn: Any, ins: list[_Value]) -> list[_Value]:
    return ins


@_rule("scan")
def _scan(eqn: Any, ins: list[_Value]) -> list[_Value]:
    first = eqn.params["num_consts"]
    carried = first + eqn.params["num_carry"]
    steps = "it counts the steps of a loop"
    _fix((x.labels[0] for x in ins[carried:]), steps)
    slices = [dataclasses.replace(x, labels=x.labels[1:]) for x in ins[carried:]]
    outs = _loop(eqn.params["jaxpr"], ins[:first], ins[first:carried], slices)
    stacked = [
        dataclasses.replace(y, labels=(_axis(eqn.params["length"], steps), *y.labels), fill=None)
        for y in outs[carried - first :]
    ]
    return outs[: carried - first] + stacked


@_rule("while")
def _while(eqn: Any, ins: list[_Value]) -> list[_Value]:
    test, body = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    carry = _loop(eqn.params["body_jaxpr"], ins[test:body], ins[body:], [])
    _run(eqn.params["cond_jaxpr"], [*ins[:test], *carry])
    return carry


def _loop(body: Any, consts: list[_Value], init: list[_Value], slices: list[_Value]) -> list[_Value]:
    """What a loop returns: the carry has the same axes after a step as before it, and so in all steps."""
    # Whether a carry depends on data, and where it is zero, could differ from step to step: assume the worst.
    carry = [_Value(value.labels, data=True) for value in init]
    outs = _run(body, [*consts, *carry, *slices])
    for before, after in zip(carry, outs, strict=False):  # stacked outputs follow
        _unified((before, after))
    return carry + outs[len(carry) :]


@_rule("cond")
def _cond(eqn: Any, ins: list[_Value]) -> list[_Value]:
    outs = [_run(branch, ins[1:]) for branch in eqn.params["branches"]]
    return [_Value(tuple(_unified(branches)), data=True) for branches in zip(*outs, strict=True)]


@_rule("dot_general")
def _dot_general(eqn: Any, ins: list[_Value]) -> list[_Value]:
    contracted, batch = eqn.params["dimension_numbers"]
    left, right = (value.labels for value in ins)
    for i, j in zip(*batch, strict=True):
        _unify(left[i], right[j])
    for i, j in zip(*contracted, strict=True):
        _contract(eqn, ins, left[i], right[j])
    free = [
        label
        for labels, *gone in zip((left, right), contracted, batch, strict=True)
        for axis, label in enumerate(labels)
        if axis not in (*gone[0], *gone[1])
    ]
    return [_made(ins, [*(left[i] for i in batch[0]), *free])]


def _contract(eqn: Any, ins: list[_Value], left: _Label, right: _Label) -> None:
    """Sum the products of two arrays over an axis: a channel can go if a weight of its own makes its products zero."""
    _unify(left, right)
    weights = [_leaves(value.loud) for value in ins if not value.data]
    for leaf in _leaves(left):
        if not weights:
            _fix(((leaf,),), f"{eqn.primitive.name} multiplies activations over it, and their scale may depend on it")
        elif all(leaf in loud for loud in weights):
            _fix(((leaf,),), f"{eqn.primitive.name} runs over it with weights that are not zero where their leaves are")


@_rule("conv_general_dilated")
def _convolution(eqn: Any, ins: list[_Value]) -> list[_Value]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        return _unknown(eqn, ins)
    batch, features, *slid = (ins[0].labels[i] for i in numbers.lhs_spec)
    filters, channels, *taps = (ins[1].labels[i] for i in numbers.rhs_spec)
    _fix(slid, "a convolution slides along it")
    _fix(taps, "taps of a convolution")
    if groups == 1:
        _contract(eqn, ins, features, channels)
    else:
        group = _axis(groups)
        _unify(features, (*group, *channels))
        _unify(filters, (*group, *_axis(_length(filters) // groups)))
        _contract(eqn, ins, channels, channels)
    shape = eqn.outvars[0].aval.shape
    labels = list(_axes(shape, "a convolution slides along it"))
    labels[numbers.out_spec[0]], labels[numbers.out_spec[1]] = batch, filters
    return [_made(ins, labels)]


@_rule("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin")
def _reduce(eqn: Any, ins: list[_Value]) -> list[_Value]:
    axes, labels = eqn.params["axes"], ins[0].labels
    _fix((labels[axis] for axis in axes), f"{eqn.primitive.name} runs over it, so what is left would change")
    return [_made(ins, (label for axis, label in enumerate(labels) if axis not in axes))]


@_rule("cumsum cumprod cummax cummin rev")
def _along(eqn: Any, ins: list[_Value]) -> list[_Value]:
    axes = eqn.params["dimensions"] if "dimensions" in eqn.params else (eqn.params["axis"],)
    _fix((ins[0].labels[axis] for axis in axes), f"{eqn.primitive.name} runs along it")
    return [_made(ins, ins[0].labels)]


@_rule("sort")
def _sort(eqn: Any, ins: list[_Value]) -> list[_Value]:
    labels = _unified(ins)
    _fix((labels[eqn.params["dimension"]],), "sort runs along it")
    return [_made(ins, labels) for _ in ins]


@_rule("reduce_window_sum reduce_window_max reduce_window_min")
def _reduce_window(eqn: Any, ins: list[_Value]) -> list[_Value]:
    params, reason = eqn.params, "a window slides along it"
    labels = []
    for axis, (label, size) in enumerate(zip(ins[0].labels, eqn.outvars[0].aval.shape, strict=True)):
        ways = [params[name][axis] for name in ("window_dimensions", "window_strides", "base_dilation")]
        still = ways == [1, 1, 1] and tuple(params["padding"][axis]) == (0, 0)
        labels.append(label if still else _changed(label, size, reason))
    return [_made(ins, labels)]


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
