"""A traced program run again with fewer channels: numbers in it that count them come from the labels of its axes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from jaxcomp.compiler._known import bind
from jaxcomp.compiler._shrink_masks import Channels, places
from jaxcomp.tracing._arithmetic import _ELEMENTWISE
from jaxcomp.tracing._atoms import _Atom, _leaves
from jaxcomp.tracing._labels import _Value
from jaxcomp.tracing._propagate import _Labelled


class Misfit(Exception):
    """An operation that does not come in other sizes; of the atoms that its arrays are made of nothing can go."""

    def __init__(self, name: str, atoms: set[_Atom]):
        super().__init__(f"{name} does not come in other sizes")
        self.atoms = atoms


class Step(NamedTuple):
    """An operation, the labels of what goes in and comes out, and the programs inside it."""

    eqn: Any
    ins: list[_Value]
    outs: list[_Value]
    inner: Sequence[_Labelled]


class Resized:
    """A program, or a part of one, with these channels alone; it runs under any transformation of JAX."""

    def __init__(self, kept: Channels):
        self._kept = kept

    def kept(self, value: _Value) -> list[np.ndarray]:
        """For every axis of an array a boolean for each place."""
        return [places(label, self._kept) for label in value.labels]

    def take(self, x: Any, value: _Value) -> Any:
        """An array of the program, with what is kept of it."""
        for axis, kept in enumerate(self.kept(value)):
            if not kept.all():
                at = np.flatnonzero(kept)
                x = jnp.take(x, at, axis) if isinstance(x, jax.core.Tracer) else np.asarray(x).take(at, axis)
        return x

    def put(self, x: Any, value: _Value) -> Any:
        """What is kept of an array where it was in the program, among zeros."""
        for axis, kept in enumerate(self.kept(value)):
            if not kept.all():
                at = np.where(kept, np.cumsum(kept) - 1, len(kept))
                x = (
                    np.take(x, at, axis, mode="clip")
                    if _is_void(x)
                    else jnp.take(x, at, axis, mode="fill", fill_value=0)
                )
        return x

    def run(self, program: _Labelled, args: Sequence[Any]) -> list[Any]:
        """What the program gives for what is kept of its arguments.

        Raises:
            Misfit: an operation cannot be had with fewer channels.
        """
        jaxpr = program.jaxpr
        known = dict(zip(jaxpr.invars, args, strict=True))
        with jax.ensure_compile_time_eval():
            for var, x in zip(jaxpr.constvars, program.constants, strict=True):
                known[var] = self.take(x, program.known[var])

        def traced(var: Any) -> Any:
            return var.val if isinstance(var, Literal) else known[var]

        for number, eqn in enumerate(jaxpr.eqns):
            ins, outs = [*map(program.value, eqn.invars)], [*map(program.value, eqn.outvars)]
            with jax.named_scope(str(eqn.source_info.name_stack)):
                step = Step(eqn, ins, outs, program.inner.get(number, ()))
                known.update(zip(eqn.outvars, self._done(step, [*map(traced, eqn.invars)]), strict=True))
        return [*map(traced, jaxpr.outvars)]

    def _done(self, step: Step, xs: list[Any]) -> list[Any]:
        eqn = step.eqn
        sides = [[self.kept(value) for value in values] for values in (step.ins, step.outs)]
        if all(kept.all() for side in sides for axes in side for kept in axes):
            return bind(eqn, *xs)  # as it was, with the derivative that it may have been given
        run = _NESTED.get(eqn.primitive.name, Resized._call) if step.inner else Resized._bound
        try:
            outs = run(self, step, xs)
            fits = [out.shape for out in outs] == [*map(_shape, sides[1])]
        except (TypeError, ValueError):
            fits = False
        if not fits:
            labels = [label for value in (*step.ins, *step.outs) for label in value.labels]
            raise Misfit(eqn.primitive.name, {atom for label in labels for atom in _leaves(label)})
        return outs

    def _bound(self, step: Step, xs: list[Any]) -> list[Any]:
        eqn, name = step.eqn, step.eqn.primitive.name
        ins, outs = ([self.kept(value) for value in values] for values in (step.ins, step.outs))
        sizes = _SIZES[name](eqn.params, ins, outs) if name in _SIZES else {}
        met = zip(xs, step.ins, _shapes_met(eqn, ins, outs), strict=True)
        return bind(eqn.replace(params=eqn.params | sizes), *(_met(x, value.fill, shape) for x, value, shape in met))

    def _call(self, step: Step, xs: list[Any]) -> list[Any]:
        return self.run(step.inner[0], xs)

    def _checkpoint(self, step: Step, xs: list[Any]) -> list[Any]:
        options = {name: step.eqn.params[name] for name in ("prevent_cse", "policy")}
        return jax.checkpoint(lambda *xs: self._call(step, [*xs]), **options)(*xs)

    def _custom_jvp(self, step: Step, xs: list[Any]) -> list[Any]:
        """A derivative is given for the sizes that were traced: it is taken there."""

        @jax.custom_jvp
        def small(*xs: Any) -> list[Any]:
            return self._call(step, [*xs])

        @small.defjvp
        def derivative(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            points, directions = ([*map(self.put, each, step.ins)] for each in (primals, tangents))
            outs, slopes = jax.jvp(functools.partial(bind, step.eqn), points, directions)
            return [*map(self.take, outs, step.outs)], [*map(self.take, slopes, step.outs)]

        return small(*xs)

    def _custom_vjp(self, step: Step, xs: list[Any]) -> list[Any]:
        @jax.custom_vjp
        def small(*xs: Any) -> list[Any]:
            return self._call(step, [*xs])

        def forward(*xs: Any) -> tuple:
            outs, pull = jax.vjp(functools.partial(bind, step.eqn), *map(self.put, xs, step.ins))
            return [*map(self.take, outs, step.outs)], pull

        def backward(pull: Callable[[list], tuple], cotangents: list[Any]) -> tuple:
            return tuple(map(self.take, pull([*map(self.put, cotangents, step.outs)]), step.ins))

        small.defvjp(forward, backward)
        return small(*xs)

    def _scan(self, step: Step, xs: list[Any]) -> list[Any]:
        params, (body,) = step.eqn.params, step.inner
        first, carried = params["num_consts"], params["num_carry"]

        def one(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            outs = self._run_to(step.ins[first : first + carried], body, [*xs[:first], *carry, *slices])
            return outs[:carried], outs[carried:]

        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = lax.scan(one, xs[first : first + carried], xs[first + carried :], **options)
        return carry + ys

    def _while(self, step: Step, xs: list[Any]) -> list[Any]:
        test = step.eqn.params["cond_nconsts"]
        first = test + step.eqn.params["body_nconsts"]
        condition, body = step.inner
        return lax.while_loop(
            lambda carry: self.run(condition, [*xs[:test], *carry])[0],
            lambda carry: self._run_to(step.ins[first:], body, [*xs[test:first], *carry]),
            xs[first:],
        )

    def _cond(self, step: Step, xs: list[Any]) -> list[Any]:
        branches = [lambda *xs, body=body: self._run_to(step.outs, body, xs) for body in step.inner]
        return lax.switch(xs[0], branches, *xs[1:])

    def _run_to(self, like: Sequence[_Value], program: _Labelled, args: Sequence[Any]) -> list[Any]:
        """What the program gives, the first outputs in the shapes of these values."""
        outs = self.run(program, args)
        known = zip(outs, program.outputs, like, strict=False)
        return [_met(x, value.fill, _shape(self.kept(other))) for x, value, other in known] + outs[len(like) :]


_NESTED: dict[str, Callable[[Resized, Step, list[Any]], list[Any]]] = {
    "scan": Resized._scan,
    "while": Resized._while,
    "cond": Resized._cond,
    "custom_jvp_call": Resized._custom_jvp,
    **dict.fromkeys(("checkpoint", "remat", "remat2"), Resized._checkpoint),
    **dict.fromkeys(("custom_vjp_call", "custom_vjp_call_jaxpr"), Resized._custom_vjp),
}

_Axes = list[np.ndarray]  # of an array: for each axis, whether a place is kept


def _shape(axes: _Axes) -> tuple[int, ...]:
    return tuple(int(kept.sum()) for kept in axes)


def _shapes_met(eqn: Any, ins: list[_Axes], outs: list[_Axes]) -> list[tuple[int, ...] | None]:
    """The shape that every operand has to have, where they have to have the same, at most but for one axis."""
    kind, shapes = eqn.primitive.name, [_shape(axes) for axes in ins]
    if kind in _ELEMENTWISE:
        return [_shape(outs[0]) if shape else None for shape in shapes]
    if kind == "concatenate":
        axis, shared = eqn.params["dimension"], _shape(outs[0])
        return [(*shared[:axis], shape[axis], *shared[axis + 1 :]) for shape in shapes]
    return [None for _ in ins]


def _met(x: Any, number: Any, shape: tuple[int, ...] | None) -> Any:
    """An array of one number in a shape: tracing does not tie its axes to those of the activations that it meets."""
    return x if number is None or shape in (None, x.shape) else jnp.full(shape, number, x.dtype)


def _slice(params: dict[str, Any], ins: list[_Axes], outs: list[_Axes]) -> dict[str, Any]:
    """What is kept before a place is where it is now."""
    return {
        name: tuple(int(kept[:at].sum()) for kept, at in zip(ins[0], params[name], strict=True))
        for name in ("start_indices", "limit_indices")
    }


def _gather(params: dict[str, Any], ins: list[_Axes], outs: list[_Axes]) -> dict[str, Any]:
    """An axis that passes is taken whole."""
    sizes = zip(params["slice_sizes"], ins[0], strict=True)
    return {"slice_sizes": tuple(int(kept.sum()) if n == len(kept) else n for n, kept in sizes)}


def _convolution(params: dict[str, Any], ins: list[_Axes], outs: list[_Axes]) -> dict[str, Any]:
    numbers, (images, filters) = params["dimension_numbers"], map(_shape, ins)
    return {"feature_group_count": images[numbers.lhs_spec[1]] // filters[numbers.rhs_spec[1]]}


# What of the parameters of an operation counts channels; those of all others say which axes, not how long.
_SIZES: dict[str, Callable[[dict[str, Any], list[_Axes], list[_Axes]], dict[str, Any]]] = {
    "broadcast_in_dim": lambda params, ins, outs: {"shape": _shape(outs[0])},
    "conv_general_dilated": _convolution,
    "dynamic_slice": lambda params, ins, outs: {"slice_sizes": _shape(outs[0])},
    "gather": _gather,
    "iota": lambda params, ins, outs: {"shape": _shape(outs[0])},
    "reshape": lambda params, ins, outs: {"new_sizes": _shape(outs[0])},
    "slice": _slice,
    "split": lambda params, ins, outs: {"sizes": tuple(_shape(out)[params["axis"]] for out in outs)},
    "tile": lambda params, ins, outs: {
        "reps": tuple(n // m for n, m in zip(_shape(outs[0]), _shape(ins[0]), strict=True))
    },
}


def _is_void(x: Any) -> bool:
    """Whether it is a tangent of integers: there are none, and JAX does not compute with them."""
    return x.dtype == jax.dtypes.float0
