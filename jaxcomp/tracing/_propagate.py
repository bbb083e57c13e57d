"""The labels of axes carried through a traced program, its loops and its calls."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal

# Each tells the rules of its operations.
from jaxcomp.tracing import _arithmetic as _arithmetic
from jaxcomp.tracing import _rearrange as _rearrange
from jaxcomp.tracing._atoms import _axis, _fix
from jaxcomp.tracing._labels import _RULES, _constant, _unified, _unknown, _Value

_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)


class _Labelled(NamedTuple):
    """A program with what is known of all its values, and, by the number of an operation, the programs inside it."""

    jaxpr: Any
    constants: Sequence[Any]
    known: Mapping[Any, _Value]
    inner: Mapping[int, "list[_Labelled]"]

    def value(self, var: Any) -> _Value:
        return _Value((), fill=var.val) if isinstance(var, Literal) else self.known[var]  # literals are scalars

    @property
    def outputs(self) -> list[_Value]:
        return [self.value(var) for var in self.jaxpr.outvars]


def _run(jaxpr: Any, args: Sequence[_Value], constants: Sequence[_Value] | None = None) -> _Labelled:
    """Carry labels through a program, whose constants cannot be pruned unless it is said what they are."""
    jaxpr, values = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
    if constants is None:
        constants = [_constant(var.aval.shape, "a constant of the program has it") for var in jaxpr.constvars]
    known = dict(zip([*jaxpr.invars, *jaxpr.constvars], [*args, *constants], strict=True))
    labelled = _Labelled(jaxpr, values, known, inner := {})
    for number, eqn in enumerate(jaxpr.eqns):
        ins = [labelled.value(var) for var in eqn.invars]
        if eqn.primitive.name in _NESTED:
            outs, inner[number] = _NESTED[eqn.primitive.name](eqn, ins)
        else:
            outs = _RULES.get(eqn.primitive.name, _unknown)(eqn, ins)
        known.update(zip(eqn.outvars, outs, strict=True))
    return labelled


def _read(jaxpr: Any) -> set[int]:
    """Numbers of the inputs that a program does anything with, but hand them on to a part that does not."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    used = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    for eqn in jaxpr.eqns:
        inner = _read(_body(eqn)) if eqn.primitive.name in _CALLS else range(len(eqn.invars))
        used |= {eqn.invars[i] for i in inner if not isinstance(eqn.invars[i], Literal)}
    return {number for number, var in enumerate(jaxpr.invars) if var in used}


_Made = tuple[list[_Value], list[_Labelled]]  # what an operation gives, and the programs inside it


def _call(eqn: Any, ins: list[_Value]) -> _Made:
    body = _run(_body(eqn), ins)
    return body.outputs, [body]


def _body(eqn: Any) -> Any:
    return next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)


def _scan(eqn: Any, ins: list[_Value]) -> _Made:
    first = eqn.params["num_consts"]
    carried = first + eqn.params["num_carry"]
    steps = "it counts the steps of a loop"
    _fix((x.labels[0] for x in ins[carried:]), steps)
    slices = [dataclasses.replace(x, labels=x.labels[1:]) for x in ins[carried:]]
    outs, body = _loop(eqn.params["jaxpr"], ins[:first], ins[first:carried], slices)
    stacked = [
        dataclasses.replace(y, labels=(_axis(eqn.params["length"], steps), *y.labels), fill=None)
        for y in outs[carried - first :]
    ]
    return outs[: carried - first] + stacked, [body]


def _while(eqn: Any, ins: list[_Value]) -> _Made:
    test, body = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    carry, looped = _loop(eqn.params["body_jaxpr"], ins[test:body], ins[body:], [])
    return carry, [_run(eqn.params["cond_jaxpr"], [*ins[:test], *carry]), looped]


def _loop(jaxpr: Any, consts: list[_Value], init: list[_Value], slices: list[_Value]) -> tuple[list[_Value], _Labelled]:
    """What a loop returns: the carry has the same axes after a step as before it, and so in all steps."""
    # Whether a carry depends on data, and where it is zero, could differ from step to step: assume the worst.
    carry = [_Value(value.labels, data=True) for value in init]
    body = _run(jaxpr, [*consts, *carry, *slices])
    for before, after in zip(carry, body.outputs, strict=False):  # stacked outputs follow
        _unified((before, after))
    return carry + body.outputs[len(carry) :], body


def _cond(eqn: Any, ins: list[_Value]) -> _Made:
    branches = [_run(branch, ins[1:]) for branch in eqn.params["branches"]]
    outs = zip(*(branch.outputs for branch in branches), strict=True)
    return [_Value(tuple(_unified(values)), data=True) for values in outs], branches


_NESTED: dict[str, Callable[[Any, list[_Value]], _Made]] = dict.fromkeys(_CALLS, _call)
_NESTED |= {"scan": _scan, "while": _while, "cond": _cond}
