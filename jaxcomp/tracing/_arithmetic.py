"""What arithmetic does to the labels of its arrays' axes: it ties axes together, or holds them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.tracing._atoms import _Atom, _axes, _axis, _fix, _Label, _leaves, _length, _unify
from jaxcomp.tracing._labels import _changed, _made, _rule, _unified, _unknown, _Value

_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj convert_element_type copy copy_p "
    "cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log "
    "log1p logistic lt max min mul ne neg nextafter not or pow real reduce_precision rem round rsqrt select_n sign sin "
    "sinh sqrt square stop_gradient sub tan tanh xor".split()
)


@_rule(" ".join(_ELEMENTWISE))
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

    fills = [value.fill for value in ins]
    if all(fill is not None for fill in fills):
        return [_Value(tuple(labels), fill=_at_zero(eqn, fills))]
    heard = _leaves(atom for label in labels for atom in label)
    for group in _silencers(eqn, fills):
        heard = heard & set().union(*(loud(ins[i]) for i in group))
    return [_Value(tuple(labels), loud=frozenset(heard))]


def _silencers(eqn: Any, fills: Sequence[Any]) -> list[list[int]]:
    """Groups of operands of elementwise arithmetic: where all of a group are zero, so is the result.

    ``fills`` has the one number that an operand holds throughout, or None.
    """
    name = eqn.primitive.name
    if name == "mul":
        return [[0], [1]]
    if name == "div":
        return [[0]]
    if name == "select_n":
        return [list(range(1, len(fills)))]
    return [[i for i, fill in enumerate(fills) if fill is None]] if _at_zero(eqn, fills) == 0 else []


def _at_zero(eqn: Any, fills: Sequence[Any]) -> Any:
    """The result where every number that is not known is zero."""
    with jax.ensure_compile_time_eval():
        known = zip(fills, eqn.invars, strict=True)
        scalars = [jnp.asarray(0 if fill is None else fill, var.aval.dtype) for fill, var in known]
        return np.asarray(eqn.primitive.bind(*scalars, **eqn.params)).item()


@_rule("optimization_barrier sharding_constraint")
def _same(eqn: Any, ins: list[_Value]) -> list[_Value]:
    return ins


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
