"""The walk through calls, loops and branches."""

import math
from collections import Counter
from typing import Any

from jax.extend.core import Literal

from jaxcomp.tracing._origins import _gathered, _Origin, _step
from jaxcomp.tracing._propagate import _CALLS, _body
from jaxcomp.tracing._walk import _rule, _Value, _Walk


@_rule("optimization_barrier")
def _barrier(walk: _Walk, eqn: Any, ins: list[_Value], last: dict[Any, None]) -> list[_Value]:
    for value in ins:
        walk.storage.hold(value.held)
    return ins


@_rule(" ".join(_CALLS))
def _call(walk: _Walk, eqn: Any, ins: list[_Value], last: dict[Any, None]) -> list[_Value]:
    with walk.inside(eqn):
        return walk.run(_body(eqn), ins, _handed_over(eqn, last, 0, len(ins)))


@_rule("shard_map")
def _shards(walk: _Walk, eqn: Any, ins: list[_Value], last: dict[Any, None]) -> list[_Value]:
    """One program on every device of a mesh, each on a part; the activations are those of one of them."""
    mesh = eqn.params["mesh"].shape
    with walk.inside(eqn, repeat=math.prod(mesh[axis] for axis in eqn.params.get("manual_axes", mesh))):
        return walk.run(_body(eqn), ins, _handed_over(eqn, last, 0, len(ins)))


@_rule("scan")
def _scan(walk: _Walk, eqn: Any, ins: list[_Value], last: dict[Any, None]) -> list[_Value]:
    consts, carried, steps = (eqn.params[name] for name in ("num_consts", "num_carry", "length"))
    first = consts + carried
    start = walk.storage.between
    slices = [_Value(_step(x.origin, steps), x.held) for x in ins[first:]]
    with walk.inside(eqn, repeat=steps):
        outs = _loop(walk, eqn, eqn.params["jaxpr"], ins[:consts], ins[consts:first], slices, last)
    for i, var in enumerate(eqn.outvars[carried:], carried):
        walk.storage.release(outs[i].held)
        origin = outs[i].origin
        held = walk.storage.stored(walk.name(eqn), var.aval.size, start) if origin.data else None
        outs[i] = _Value(_Origin(origin.leaves, var.aval.size, origin.data), held)
    walk.keep(outs[carried:])
    return outs


@_rule("while")
def _while(walk: _Walk, eqn: Any, ins: list[_Value], last: dict[Any, None]) -> list[_Value]:
    test, first = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    before = len(walk.products)
    with walk.inside(eqn, mark=" (in a while loop)"):
        walk.discard(walk.run(eqn.params["cond_jaxpr"], [*ins[:test], *ins[first:]]))
        outs = _loop(walk, eqn, eqn.params["body_jaxpr"], ins[test:first], ins[first:], [], last)
        walk.keep(ins[:test])
    if len(walk.products) > before:
        walk.notes.append(f"{walk.name(eqn)}: a while loop of unknown length is counted once")
    return outs


def _loop(
    walk: _Walk,
    eqn: Any,
    body: Any,
    consts: list[_Value],
    init: list[_Value],
    slices: list[_Value],
    last: dict[Any, None],
) -> list[_Value]:
    """The carry and what else comes of a step; every step is taken to be like the first."""
    walk.storage.store_all()
    begin = len(consts)
    first = len(eqn.invars) - len(init) - len(slices)
    handed_over = _handed_over(eqn, last, first, first + len(init))[first : first + len(init)]
    carry = []
    for i, (value, before) in enumerate(zip(init, body.jaxpr.invars[begin:], strict=False)):
        # What changes from step to step is an activation, whatever it begins as; but for counters.
        size = before.aval.size
        if value.origin.data or (size > 1 and body.jaxpr.outvars[i] is not before):
            handed_over[i] |= not value.held
            held = value.held or walk.storage.stored(walk.name(eqn), size)
            value = _Value(_Origin((), size, data=True), held)
        carry.append(value)
    flags = [False] * begin + handed_over + [False] * len(slices)
    outs = walk.run(body, [*consts, *carry, *slices], flags)
    walk.keep([*consts, *slices, *outs[: len(init)]])
    return outs


@_rule("cond")
def _cond(walk: _Walk, eqn: Any, ins: list[_Value], last: dict[Any, None]) -> list[_Value]:
    walk.storage.store_all()
    found, before = [], len(walk.products)
    for number, branch in enumerate(eqn.params["branches"]):
        with walk.inside(eqn, mark=f" (branch {number})"):
            found.append(walk.run(branch, ins[1:]))
        walk.discard(found[-1])
    walk.keep(ins[1:])
    if len(walk.products) > before:
        walk.notes.append(f"{walk.name(eqn)}: the products of all {len(found)} branches are counted")
    outs = []
    for var, *values in zip(eqn.outvars, *found, strict=True):
        origin = _gathered([value.origin for value in values], var.aval.size)
        outs.append(_Value(origin, walk.storage.stored(walk.name(eqn), var.aval.size) if origin.data else None))
    return outs


def _handed_over(eqn: Any, last: dict[Any, None], first: int, end: int) -> list[bool]:
    """Which operands from the first to the end are handed over; they are no longer released by who called."""
    times = Counter(var for var in eqn.invars if not isinstance(var, Literal))
    flags = []
    for number, var in enumerate(eqn.invars):
        flags.append(not isinstance(var, Literal) and first <= number < end and var in last and times[var] == 1)
        if flags[-1]:
            del last[var]
    return flags
