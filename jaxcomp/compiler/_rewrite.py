"""A traced program run again, with other ways of doing some of its products."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from jaxcomp.compiler import native
from jaxcomp.compiler._apart import APART, apart
from jaxcomp.compiler._known import Known, Place, bind, constant, derived
from jaxcomp.tracing._propagate import _CALLS, _body
from jaxcomp.tracing._walk import _has_products, _name, _parts

PRODUCTS = ("dot_general", "conv_general_dilated")
# Operations of our own, and the same without them.
_PLAIN: Mapping[str, Callable[..., jax.Array]] = {
    native.PRODUCT.name: native.plain,
    APART.name: lambda x, step: x,
}


class Way(Protocol):
    """A way of doing a product, a pytree of arrays: called with the activation, it gives the output."""

    def __call__(self, x: jax.Array) -> jax.Array: ...

    def describe(self) -> str:
        """What it is, in a few words."""
        ...


class Value(NamedTuple):
    """A value of the program: what stands for it in the new one, and what is known of it beforehand."""

    traced: Any
    known: Known | None = None


class Site(NamedTuple):
    """A product of an activation with what follows from leaves.

    Attributes:
        eqn: the operation.
        side: which operand the weights are.
        weights: what is known of them.
        scope: the scopes that it is in.
    """

    eqn: Any
    side: int
    weights: Known
    scope: str


class Rewriter:
    """Runs a program on `Value`s under any transformation of JAX.

    Args:
        loops: for every product that has a way of its own, by its place, the scans over whose steps its weights vary;
            a way is a pytree whose arrays have a leading axis for each of them.
        wanted: whether a product whose weights follow from these leaves is worth listing.
        portable: do by plain operations of JAX what only XLA for CPU has a word for.

    Attributes:
        sites: the products that were met, by place.
    """

    def __init__(
        self,
        loops: Mapping[Place, tuple[Place, ...]],
        wanted: Callable[[frozenset[str]], bool],
        portable: bool = False,
    ):
        self._loops, self._wanted, self._portable = loops, wanted, portable
        self.sites: dict[Place, Site] = {}

    def run(
        self, program: Any, args: Sequence[Value], ways: Mapping[Place, Way], place: Place = (), scope: str = ""
    ) -> list[Value]:
        """What the program gives; products with a way take it, all others are done as they were."""
        jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
        known = dict(zip(jaxpr.invars, args, strict=True))
        known |= {var: Value(x, constant(x)) for var, x in zip(jaxpr.constvars, consts, strict=True)}

        def value(var: Any) -> Value:
            return Value(var.val, constant(var.val)) if isinstance(var, Literal) else known[var]

        for number, eqn in enumerate(jaxpr.eqns):
            ins, here = [value(var) for var in eqn.invars], (*place, number)
            rule = self._rule(eqn, ins)
            outs = rule(eqn, ins, ways, here, scope) if rule else _done(eqn, ins)
            known.update(zip(eqn.outvars, outs, strict=True))
        return [value(var) for var in jaxpr.outvars]

    def _rule(self, eqn: Any, ins: Iterable[Value]) -> Callable[..., list[Value]] | None:
        if all(value.known for value in ins):
            return None
        kind = eqn.primitive.name
        if kind in PRODUCTS:
            return self._product
        if self._portable and kind in _PLAIN:
            return lambda eqn, ins, *_: [Value(_PLAIN[kind](*_traced(ins), **eqn.params))]
        rules = {"scan": self._scan, "while": self._while, "cond": self._cond} | dict.fromkeys(
            (*_CALLS, native.FOLLOWED.name), self._call
        )
        # What has no product inside stays as it is, with the derivative that it may have been given.
        return rules.get(kind) if any(_has_products(part, _PLAIN) for part in _parts(eqn)) else None

    def _product(self, eqn: Any, ins: list[Value], ways: Mapping[Place, Way], here: Place, scope: str) -> list[Value]:
        for side, value in enumerate(ins):  # not both are known
            if value.known and self._wanted(value.known.leaves):
                self.sites[here] = Site(eqn, side, value.known, _name(scope, eqn))
                break
        else:
            return _done(eqn, ins)
        if here not in ways:
            return _done(eqn, ins)
        return [Value(ways[here](ins[1 - side].traced))]

    def _call(self, eqn: Any, ins: list[Value], ways: Mapping[Place, Way], here: Place, scope: str) -> list[Value]:
        return self.run(_body(eqn), ins, ways, here, _name(scope, eqn))

    def _scan(self, eqn: Any, ins: list[Value], ways: Mapping[Place, Way], here: Place, scope: str) -> list[Value]:
        first = eqn.params["num_consts"]
        carried = eqn.params["num_carry"]
        consts, init, stacked = ins[:first], ins[first : first + carried], ins[first + carried :]
        stepped = {place: way for place, way in ways.items() if here in self._loops[place]}

        def step(carry: list, slices: tuple) -> tuple[list, list]:
            values, mine, number = slices
            if not self._portable:
                values = [x if y.known else apart(x, number) for x, y in zip(values, stacked, strict=True)]
            outs = self.run(
                eqn.params["jaxpr"],
                [
                    *consts,
                    *map(Value, carry),
                    *(Value(x, y.known and y.known.step(here)) for x, y in zip(values, stacked, strict=True)),
                ],
                {**ways, **mine},
                here,
                _name(scope, eqn),
            )
            return _traced(outs[:carried]), _traced(outs[carried:])

        length, reverse, unroll = (eqn.params[name] for name in ("length", "reverse", "unroll"))
        slices = _traced(stacked), stepped, jnp.arange(length)
        carry, ys = lax.scan(step, _traced(init), slices, length, reverse=reverse, unroll=unroll)
        return [*map(Value, carry), *map(Value, ys)]

    def _while(self, eqn: Any, ins: list[Value], ways: Mapping[Place, Way], here: Place, scope: str) -> list[Value]:
        test, first = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]

        def part(name: str, number: int, consts: list[Value], carry: list) -> list:
            args = [*consts, *map(Value, carry)]
            return _traced(self.run(eqn.params[name], args, ways, (*here, number), _name(scope, eqn)))

        condition = functools.partial(part, "cond_jaxpr", 0, ins[:test])
        body = functools.partial(part, "body_jaxpr", 1, ins[test:first])
        carry = lax.while_loop(lambda carry: condition(carry)[0], body, _traced(ins[first:]))
        return [*map(Value, carry)]

    def _cond(self, eqn: Any, ins: list[Value], ways: Mapping[Place, Way], here: Place, scope: str) -> list[Value]:
        index, *operands = ins

        def branch(number: int, body: Any) -> list:
            return _traced(self.run(body, operands, ways, (*here, number), _name(scope, eqn)))

        branches = [functools.partial(branch, *each) for each in enumerate(eqn.params["branches"])]
        return [*map(Value, lax.switch(index.traced, branches))]


def _done(eqn: Any, ins: Sequence[Value]) -> list[Value]:
    """An operation as it was, and what is known of its outputs."""
    outs, known = bind(eqn, *_traced(ins)), [value.known for value in ins]
    if eqn.effects or not all(known):
        return [*map(Value, outs)]
    return [Value(out, each) for out, each in zip(outs, derived(eqn, [k for k in known if k]), strict=True)]


def _traced(values: Iterable[Value]) -> list[Any]:
    return [value.traced for value in values]
