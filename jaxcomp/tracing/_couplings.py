"""Which channels must go together: the axes of leaves that a traced program ties to one another.

Every axis of every array in the program is written as a product of atoms, outermost first, as a number is of digits.
An axis of a leaf starts as one atom. Adding two arrays makes the atoms of matching axes one; a reshape splits an atom
into several, or strings several along one axis; a concatenation lays atoms end to end. What is left in the end is
one atom for every set of channels that can only be removed together.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcomp._paths import replace, select
from jaxcomp._table import Table
from jaxcomp.constraints import Layout, View
from jaxcomp.tracing._atoms import _Atom, _axes, _fix, _places
from jaxcomp.tracing._program import _Program, _program
from jaxcomp.tracing._propagate import _Labelled, _read, _run, _Value


@dataclasses.dataclass(frozen=True)
class Member:
    """Where one axis of a leaf holds the channels of a coupling.

    Channel ``c`` of ``size`` is at ``offset + t * stride + c * repeat + i`` for all ``t < tile`` and ``i < repeat``:
    the axis read as ``(tile, channel, repeat)``, beginning at `offset`. A plain axis of channels has tile and repeat 1.
    """

    path: str
    axis: int
    size: int
    tile: int
    repeat: int
    offset: int
    stride: int

    def positions(self) -> np.ndarray:
        """``[size, tile * repeat]``: where along the axis every channel is.

        >>> Member("fc/kernel", 0, size=2, tile=3, repeat=1, offset=0, stride=2).positions().tolist()
        [[0, 2, 4], [1, 3, 5]]
        """
        t, c, i = np.ogrid[: self.tile, : self.size, : self.repeat]
        at = self.offset + t * self.stride + c * self.repeat + i
        return at.transpose(1, 0, 2).reshape(self.size, -1)

    def view(self, shape: tuple[int, ...]) -> View:
        """The view of a leaf of this shape whose groups are the channels in order, in one pool.

        Raises:
            ValueError: the axis holds other channels too, or the channels are both tiled and repeated.
        """
        if self.size * self.tile * self.repeat != shape[self.axis] or min(self.tile, self.repeat) > 1:
            raise ValueError(
                f"no view has the channels of axis {self.axis} of leaf '{self.path}' as groups: {self.size} of them, "
                f"tile {self.tile}, repeat {self.repeat}, on {shape[self.axis]} positions; use positions()"
            )
        layout = Layout("".join("o" if axis == self.axis else "i" for axis in range(len(shape))))
        if self.tile > 1:
            return View(f"channels({self.size})", self.size, None, "C", "r", "Rc", layout=layout)
        return View(f"channels({self.size})", self.repeat, None, "C", "R", "rc", layout=layout)


@dataclasses.dataclass(frozen=True)
class Coupling:
    """Channels that can only be removed from all their members together.

    Attributes:
        members: where leaves hold the channels; a leaf may be named several times.
        reason: why removing a channel is not known to be right, or not known to be the same as setting it to zero in
            every member; empty where it is. Then `members` may also be incomplete.
    """

    members: tuple[Member, ...]
    reason: str = ""

    @property
    def size(self) -> int:
        """The number of channels."""
        return self.members[0].size

    @property
    def prunable(self) -> bool:
        return not self.reason

    def masked(self, params: Any, keep: ArrayLike) -> Any:
        """The parameters with the channels that are not kept set to zero; ``keep`` is ``[size]``, of booleans."""
        leaves = select(params, {member.path: None for member in self.members})
        for (path, axis), dropped in self._dropped(keep).items():
            x = leaves[path]
            kept = np.isin(np.arange(x.shape[axis]), dropped, invert=True)
            kept = kept.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
            leaves[path] = jnp.where(kept, x, jnp.zeros((), x.dtype))
        return replace(params, leaves)

    def pruned(self, params: Any, keep: ArrayLike) -> Any:
        """The parameters without the channels that are not kept; ``keep`` is ``[size]``, of booleans."""
        leaves = select(params, {member.path: None for member in self.members})
        for (path, axis), dropped in self._dropped(keep).items():
            leaves[path] = jnp.delete(leaves[path], dropped, axis)
        return replace(params, leaves)

    def views(self, params: Any) -> dict[str, View]:
        """For every leaf the view whose groups are the channels: what a constraint on whole channels looks at.

        Raises:
            ValueError: a leaf has several members, or one that no view describes.
        """
        leaves = select(params, {member.path: None for member in self.members})
        if len(leaves) < len(self.members):
            raise ValueError(f"several members lie in one leaf, {[m.path for m in self.members]}: use positions()")
        return {member.path: member.view(leaves[member.path].shape) for member in self.members}

    def _dropped(self, keep: ArrayLike) -> dict[tuple[str, int], np.ndarray]:
        """Positions to drop along every axis: together, since dropping some moves the others."""
        kept = np.asarray(keep, bool)
        if kept.shape != (self.size,):
            raise ValueError(f"keep has shape {kept.shape}, expected a boolean for each of {self.size} channels")
        found: dict[tuple[str, int], np.ndarray] = {}
        for m in self.members:
            before = found.get((m.path, m.axis), np.zeros(0, int))
            found[m.path, m.axis] = np.concatenate([before, m.positions()[~kept].ravel()])
        return found


class Couplings(tuple[Coupling, ...]):
    """Couplings in the order of the tree; print them."""

    def table(self) -> Table:
        """A row a member; what all members of a coupling share stands at the first."""
        table = Table("couplings", ["coupling", "channels", "prunable", "leaf", "axis", "tile", "repeat", "offset"])
        for number, coupling in enumerate(self):
            shared: tuple = (number, coupling.size, "no: " + coupling.reason if coupling.reason else "yes")
            for m in coupling.members:
                table.row(*shared, m.path, m.axis, m.tile, m.repeat, m.offset)
                shared = ("", "", "")
        return table

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self):
        return self.table().__rich__()


def couplings(apply: Callable[..., Any], params: Any, *inputs: Any) -> Couplings:
    """Find the axes of leaves whose channels must be removed together, by tracing the network.

    Removing a channel of a prunable coupling from all its members, with the sizes in the program that count it, gives
    exactly the function that setting it to zero in all of them gives. Axes of inputs and outputs are not prunable, nor
    what a mean or a norm runs over (as layer normalization does), what activations alone are multiplied over (as
    queries and keys are, since their scale depends on its length), or what some operation does that is not understood:
    the reason is given. Axes of length 1 are left out. Nothing is computed.

    The program is taken as it is traced. Counts that the code holds as constants (features, heads, groups, where a
    split cuts) shrink with the channels they count, so change them too; a constant that the code works out from a
    width, such as the ``1 / n`` of a mean, is recognised only by the operations named above. Trace inference, with
    all the state that inference reads among the parameters: batch statistics are members too.

    Args:
        apply: ``apply(params, *inputs)`` gives the outputs: arrays in any pytree.
        params: any pytree of arrays or of `jax.ShapeDtypeStruct`.
        inputs: arrays, `jax.ShapeDtypeStruct` or pytrees of them; what is no array is handed through as it is.

    Returns:
        A tuple of `Coupling` in the order of the tree, which prints as a table. Every axis longer than 1 of every leaf
        is in it, but where a program cuts channels off one by one. An axis may be in several, whose channels are then
        its digits (heads and their width) or its segments.

    >>> import jax
    >>> def perceptron(params, x):
    ...     hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    ...     return hidden @ params["w2"]
    >>> params = {"w1": jnp.ones((4, 3)), "b1": jnp.ones(3), "w2": jnp.ones((3, 2))}
    >>> [found] = [c for c in couplings(perceptron, params, jnp.ones((1, 4))) if c.prunable]
    >>> found.size, [(member.path, member.axis) for member in found.members]
    (3, [('b1', 0), ('w1', 1), ('w2', 0)])

    References: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
    """
    program = _program(apply, params, inputs)
    weights = _labelled(program)[1]
    found = _members(weights.items()).items()
    return Couplings(Coupling(tuple(members), atom.reason or _overlap(members)) for atom, members in found)


def _labelled(program: _Program, constants: Sequence[_Value] | None = None) -> tuple[_Labelled, dict[str, _Value]]:
    """The program with the labels of all its values, and what its leaves are."""
    read = _read(program.jaxpr)
    weights = {
        path: _Value(_axes(x.shape, "" if number in read else "the program does not read it"))
        for number, (path, x) in enumerate(program.leaves.items())
    }
    data = [_Value(_axes(x.shape, "an input has it"), data=True) for x in program.inputs.values()]
    labelled = _run(program.jaxpr, [*weights.values(), *data], constants)
    for output in labelled.outputs:
        _fix(output.labels, "an output has it")
    return labelled, weights


def _members(weights: Iterable[tuple[str, _Value]]) -> dict[_Atom, list[Member]]:
    """Where the channels of every atom lie, in the order of the leaves."""
    found: dict[_Atom, list[Member]] = {}
    for path, weight in weights:
        for axis, label in enumerate(weight.labels):
            for atom, *where in _places(label):
                found.setdefault(atom, []).append(Member(path, axis, atom.size, *where))
    return found


def _overlap(members: list[Member]) -> str:
    """A reason not to prune where one atom is two digits of an axis: no channel has places of its own there."""
    at: dict[tuple[str, int], list[int]] = {}
    for member in members:
        at.setdefault((member.path, member.axis), []).extend(member.positions().ravel())
    return "it meets itself along one axis" if any(len(set(p)) < len(p) for p in at.values()) else ""
