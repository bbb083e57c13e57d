"""Dead channels removed: the same function from smaller dense arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxcomp._paths import is_array, leaves_by_path, replace
from jaxcomp._table import Table
from jaxcomp.compiler._known import leaf
from jaxcomp.compiler._resize import Misfit, Resized
from jaxcomp.compiler._shrink_masks import Channels, beside
from jaxcomp.compiler._shrink_needed import Needs
from jaxcomp.tracing._atoms import _Atom, _axes, _fix
from jaxcomp.tracing._couplings import Coupling, Member, _labelled, _members, _overlap
from jaxcomp.tracing._labels import _Value
from jaxcomp.tracing._program import _Program, _program
from jaxcomp.tracing._propagate import _Labelled


@dataclasses.dataclass(frozen=True)
class Removal:
    """What became of the channels of a coupling.

    Attributes:
        coupling: where its channels were; a constant of the program stands among the leaves as 'constant 0'.
        keep: ``[size]``, of booleans: the channels that are left.
    """

    coupling: Coupling
    keep: np.ndarray

    @property
    def channels(self) -> int:
        """How many channels were removed."""
        return int((~self.keep).sum())

    @property
    def leaves(self) -> str:
        """The axes of leaves that hold them."""
        return ", ".join(dict.fromkeys(f"{m.path}.{m.axis}" for m in self.coupling.members))


class Removals(tuple[Removal, ...]):
    """Couplings of which channels were removed, or were not for a reason though all are zero; print them."""

    def table(self) -> Table:
        table = Table("removed", ["coupling", "channels", "removed", "leaves", "why not more"])
        for number, removal in enumerate(self):
            coupling = removal.coupling
            table.row(number, coupling.size, removal.channels, removal.leaves, coupling.reason)
        return table

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self):
        return self.table().__rich__()


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A smaller network.

    Attributes:
        apply: ``apply(params, *inputs)`` gives what the network gave.
        params: the parameters that are left, in the tree that they were in.
        removed: the channels that are gone.
    """

    apply: Callable[..., Any]
    params: Any
    removed: Removals


def shrink(apply: Callable[..., Any], params: Any, *inputs: Any) -> Shrunk:
    """Remove the channels that the outputs do not need, with all that in the program counts them.

    The channels are those of `jaxcomp.couplings`, with constants of the program as leaves. A sum over channels c of
    weights w and activations x, that gives channels d, needs

    ``{c : w[c, d] x[c] is not zero for some needed d}``,

    and so back from the outputs, which are all needed; the rest goes. Weights are the numbers that the program makes of
    leaves, by masks, casts or products; an activation is taken for zero if whatever writes it is and nothing on the way
    makes more of zero. So channels go whose readers are zero, whatever is written to them; those whose writers are
    zero, whatever their readers are; and those that only feed others that go. One is left of those that all could go.

    What remains are dense arrays and the same operations on smaller shapes. The outputs are equal to rounding, since
    shorter sums are done in another order, as long as all numbers are finite: an infinite channel makes NaN of a weight
    of zero, but not once it is gone. Derivatives with respect to inputs are equal too; a function with a derivative of
    its own (``jax.custom_jvp``, ``jax.custom_vjp``) keeps it. The program is traced for inputs of these shapes, and
    what it worked out from widths, such as the ``1 / n`` of a mean, stays as it was.

    Args:
        apply: ``apply(params, *inputs)`` gives the outputs: arrays in any pytree.
        params: any pytree of arrays.
        inputs: arrays, `jax.ShapeDtypeStruct` or pytrees of them.

    Returns:
        A `Shrunk`; where nothing can be removed, with ``apply`` and ``params`` as they are.

    Raises:
        ValueError: later, of `Shrunk.apply`: other leaves or inputs than it was traced for.

    >>> import jax.numpy as jnp
    >>> def perceptron(params, x):
    ...     return jax.nn.relu(x @ params["w1"] + params["b1"][None]) @ params["w2"]
    >>> params = {"w1": jnp.ones((4, 3)), "b1": jnp.ones(3), "w2": jnp.array([[1.0, 2], [0, 0], [3, 4]])}
    >>> small = shrink(perceptron, params, jnp.ones((1, 4)))
    >>> jax.tree.map(jnp.shape, small.params)
    {'b1': (2,), 'w1': (4, 2), 'w2': (2, 2)}
    >>> small.apply(small.params, jnp.ones((1, 4)))
    Array([[20., 30.]], dtype=float32)
    """
    program = _program(apply, params, inputs)
    held = {f"constant {i}": x for i, x in enumerate(program.jaxpr.consts)}
    constants = {
        path: _Value(_axes(x.shape, "" if is_array(x) else "it is of random keys")) for path, x in held.items()
    }
    labelled, weights = _labelled(program, [*constants.values()])
    arrays = program.leaves | {path: x for path, x in held.items() if is_array(x)}
    members = _members((path, (weights | constants)[path]) for path in arrays)
    for atom, where in members.items():
        _fix([(atom,)], _overlap(where))
    while True:
        kept = _needed(labelled, program.leaves, [atom for atom in members if not atom.reason])
        try:
            jaxpr, leaves = _smaller(labelled, program, Resized(kept))
            break
        except Misfit as misfit:
            _fix([(atom,) for atom in misfit.atoms & kept.keys() if not kept[atom].all()], str(misfit))
    removals = Removals(
        Removal(Coupling(tuple(where), atom.reason), keep)
        for atom, where in members.items()
        if not (keep := kept.get(atom, np.ones(atom.size, bool))).all() or _some_silent(where, arrays)
    )
    if all(removal.keep.all() for removal in removals):
        return Shrunk(apply, params, removals)
    return Shrunk(_apply(jaxpr, program, leaves), replace(params, leaves), removals)


def _needed(labelled: _Labelled, leaves: Mapping[str, Any], atoms: list[_Atom]) -> Channels:
    """The channels of these atoms that the program needs with these leaves."""
    needs = Needs(atoms)
    known = {var: leaf(*item) for var, item in zip(labelled.jaxpr.invars, leaves.items(), strict=False)}
    needs.run(labelled, [needs.fact(labelled.known[var], known.get(var)) for var in labelled.jaxpr.invars])
    return needs.solve()


def _smaller(labelled: _Labelled, program: _Program, small: Resized) -> tuple[ClosedJaxpr, dict[str, Any]]:
    """The program with what is kept, and its leaves."""
    values = map(labelled.value, labelled.jaxpr.invars)
    taken = {path: small.take(x, value) for (path, x), value in zip(program.leaves.items(), values, strict=False)}
    leaves = {path: x if x is program.leaves[path] else jnp.asarray(x) for path, x in taken.items()}
    jaxpr = jax.make_jaxpr(lambda *args: small.run(labelled, args))(*leaves.values(), *program.inputs.values())
    return jaxpr, leaves


def _apply(jaxpr: ClosedJaxpr, program: _Program, leaves: Mapping[str, Any]) -> Callable[..., Any]:
    """The smaller program as a function of the same trees."""
    run, structure = jaxpr_as_fun(jaxpr), jax.tree.structure(program.outputs)
    expected = {"leaf": leaves, "input": program.inputs}

    def apply(params: Any, *inputs: Any) -> Any:
        given = {"leaf": leaves_by_path(params), "input": leaves_by_path(inputs)}
        for kind in expected:
            shapes, found = ({path: x.shape for path, x in side[kind].items()} for side in (expected, given))
            wrong = [path for path in (*shapes, *found) if shapes.get(path) != found.get(path)]
            if wrong:
                raise ValueError(
                    f"{kind} {wrong[0]!r}: found shape {found.get(wrong[0])}, expected {shapes.get(wrong[0])}, as the "
                    f"network was shrunk; give what shrink returned, or shrink again for these shapes"
                )
        return jax.tree.unflatten(structure, run(*(given[kind][path] for kind in expected for path in expected[kind])))

    return apply


def _some_silent(members: list[Member], arrays: Mapping[str, Any]) -> bool:
    """Whether any channel is zero in all its members."""
    live = np.zeros(members[0].size, bool)
    for member in members:
        live |= beside(np.asarray(arrays[member.path]), member.axis)[member.positions()].any(1)
    return not live.all()
