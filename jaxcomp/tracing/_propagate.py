"""The labels of axes carried through a traced program, its loops and its calls."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend.core import Literal

# Each tells the rules of its operations.
from jaxcomp.tracing import _arithmetic as _arithmetic
from jaxcomp.tracing import _rearrange as _rearrange
from jaxcomp.tracing._atoms import _axis, _fix
from jaxcomp.tracing._labels import _RULES, _constant, _rule, _unified, _unknown, _Value

_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)


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


@_rule(" ".join(_CALLS))
def _call(eqn: Any, ins: list[_Value]) -> list[_Value]:
    return _run(_body(eqn), ins)


def _body(eqn: Any) -> Any:
    return next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)


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
