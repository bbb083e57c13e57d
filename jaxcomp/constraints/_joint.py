"""What must hold of several leaves at once: the questions of a constraint, asked of a dict of arrays."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import Constraint, Footprint, dense_footprint, norm
from jaxcomp.constraints._sparse import Sparse
from jaxcomp.constraints.forms import Forms, Part, of_any_shape

Arrays = dict[str, jax.Array]


class Joint(Constraint):
    """A set of dicts ``{path: array}``: a constraint on a group of leaves, whose methods take and return such dicts.

    `jaxcomp.assign` gives it all the leaves that its rule matches, as one group. `project` alone makes one. The order
    of a dict means nothing (JAX sorts its keys), and its paths are strings that no method needs to understand.
    Where a leaf holds NaN or infinity the result holds NaN, never a silently wrong member.

    >>> import dataclasses, jax, jax.numpy as jnp, jaxcomp as jc
    >>> @jc.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Ball(Joint):
    ...     radius: float = 1.0
    ...     def project(self, x):
    ...         length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in x.values()))
    ...         return {path: leaf * jnp.minimum(1, self.radius / length) for path, leaf in x.items()}
    >>> float(Ball().violation({"a": jnp.array([3.0]), "b": jnp.array([4.0])}))
    4.0
    """

    def project(self, x: Arrays) -> Arrays:  # type: ignore[override]
        """The nearest member of the set, the squared distances of all leaves summed; same paths, shapes, dtypes."""
        raise NotImplementedError(f"{type(self).__name__} must define project(x)")

    def tangent(self, x: Arrays, v: Arrays) -> Arrays:  # type: ignore[override]
        """The updates ``v`` at a member ``x``, without what would leave the set."""
        moved = self.project({path: x[path] + v[path] for path in x})
        return {path: (moved[path] - x[path]).astype(v[path].dtype) for path in x}

    def violation(self, x: Arrays) -> jax.Array:  # type: ignore[override]
        """The distance of the group from the set, a float32 scalar."""
        near = self.project(x)
        return norm(jnp.stack([norm(x[p].astype(jnp.float32) - near[p].astype(jnp.float32)) for p in x]))

    def footprint(self, x: Arrays) -> dict[str, Footprint]:  # type: ignore[override]
        """What storing every leaf takes."""
        return {path: dense_footprint(leaf) for path, leaf in x.items()}

    def forms(self, x: Arrays) -> dict[str, Forms]:  # type: ignore[override]
        """What of every leaf storage can leave out."""
        return dict.fromkeys(x, ())

    def fit(self, x: Arrays) -> "Joint":  # type: ignore[override]
        """This constraint with constants that depend on the pretrained ``x`` filled in."""
        return self

    def exact(self, shape: dict[str, tuple[int, ...]]) -> bool:  # type: ignore[override]
        """Whether `project` gives the nearest member of a group whose leaves have these shapes."""
        return True

    def check(self, x: Mapping[str, Any]) -> None:
        """Raise `ValueError` if the constraint cannot apply to leaves of these shapes and dtypes."""
        for path, leaf in x.items():
            try:
                super().check(leaf)
            except ValueError as error:
                raise ValueError(f"'{path}' {error}") from None

    def covers(self, path: str) -> bool:
        """Whether the constraint says anything of the leaf at this path."""
        return True

    def each(self, x: Arrays) -> dict[str, Constraint]:
        """What every leaf of a member is under, for reports: the constraint itself, or what it has chosen."""
        return dict.fromkeys(x, self)


class Glued(Joint):
    """One array made of all leaves, without loss, under a constraint on one array; subclasses say how it is made."""

    inner: Constraint

    def _glue(self, x: Arrays) -> jax.Array:
        raise NotImplementedError

    def _cut(self, whole: jax.Array, like: Arrays) -> Arrays:
        """The inverse of `_glue`, in the shapes and dtypes of ``like``."""
        raise NotImplementedError

    def _lie(self, x: Arrays) -> dict[str, Footprint]:
        """How the non-zeros of every leaf lie; as `values` the weights of the groups in use, zeros among them."""
        raise NotImplementedError

    def _glued(self, x: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
        leaves = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in x.items()}
        return jax.eval_shape(self._glue, leaves)

    def project(self, x):
        return self._cut(self.inner.project(self._glue(x)), x)

    def tangent(self, x, v):
        return self._cut(self.inner.tangent(self._glue(x), self._glue(v)), v)

    def violation(self, x):
        return self.inner.violation(self._glue(x))

    def footprint(self, x):
        """The array is stored once, in the inner set's format, of which every leaf bears its share.

        Stored first are non-zeros, then the zeros of groups in use, then other zeros: of the last of these that there
        is room for, leaf by leaf an equal part, rounded up. Index bits go by values, side bits by weights.
        """
        whole, lie = self.inner.footprint(self._glue(x)), self._lie(x)
        left, values = whole.values, dict.fromkeys(lie, jnp.float32(0))
        for kind in (lambda f: f.nonzeros, lambda f: f.values - f.nonzeros, lambda f: f.size - f.values):
            there = sum(kind(f) for f in lie.values())
            stored = jnp.clip(left, 0, there)
            values = {path: values[path] + kind(f) * (stored / jnp.maximum(there, 1)) for path, f in lie.items()}
            left = left - stored
        values = {path: jnp.minimum(jnp.ceil(values[path]), f.size) for path, f in lie.items()}
        a_value = whole.index_bits / jnp.maximum(sum(values.values()), 1)
        a_weight = whole.side_bits / sum(f.size for f in lie.values())
        return {
            path: dataclasses.replace(
                f,
                values=values[path].astype(jnp.int32),
                value_bits=jnp.minimum(whole.value_bits, f.value_bits),
                index_bits=a_value * values[path],
                side_bits=a_weight * f.size,
            )
            for path, f in lie.items()
        }

    def exact(self, shape):
        return self.inner.exact(self._glued({p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in shape.items()}).shape)

    def check(self, x):
        super().check(x)
        self.inner.check(self._glued(x))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Together(Glued):
    """All leaves of the group as one vector, entry after entry, that must lie in a set: ``{x : (x_1, …, x_n) in S}``.

    ``Together(Sparse(0.05))`` keeps the 5 % largest weights of the network, wherever they are;
    ``Together(Quantized(Ternary()))`` gives it one scale. Leaves follow each other in the order of their sorted paths,
    which decides ties. Exact if the inner projection is.

    Args:
        inner: any constraint on a vector.

    >>> from jaxcomp.constraints import Sparse
    >>> layers = {"fc1": jnp.array([[3.0, 1.0]]), "fc2": jnp.array([0.5, -2.0])}
    >>> {path: x.tolist() for path, x in Together(Sparse(0.5)).project(layers).items()}
    {'fc1': [[3.0, 0.0]], 'fc2': [0.0, -2.0]}
    """

    inner: Constraint

    def project(self, x):
        if not (isinstance(self.inner, Sparse) and self._in_place):
            return super().project(x)
        paths = sorted(x)
        return dict(zip(paths, self.inner.project_union([x[path] for path in paths]), strict=True))

    def tangent(self, x, v):
        if not self._in_place:
            return super().tangent(x, v)
        return {path: self.inner.tangent(x[path], v[path]) for path in x}

    def violation(self, x):
        return Joint.violation(self, x) if self._in_place else super().violation(x)

    def forms(self, x):
        """Those of the vector: of a leaf by itself, if they speak of no groups of several weights."""
        whole = self.inner.forms(self._glue(x))
        if of_any_shape(whole) == whole:
            return dict.fromkeys(x, whole)
        ends = _ends(x)
        size = max(ends.values())
        return {path: (Part(end - x[path].size, size, whole),) for path, end in ends.items()}

    def fit(self, x):
        return Together(self.inner.fit(self._glue(x)))

    @property
    def _in_place(self) -> bool:
        """Whether the largest weights are found without glueing: that takes a copy, and leaves off their devices."""
        return isinstance(self.inner, Sparse) and self.inner.view.is_flat

    def _glue(self, x):
        return jnp.concatenate([x[path].ravel() for path in sorted(x)])

    def _cut(self, whole, like):
        ends = _ends(like)
        parts = zip(ends, jnp.split(whole, [*ends.values()][:-1]), strict=True)
        return {path: part.reshape(like[path].shape).astype(like[path].dtype) for path, part in parts}

    def _lie(self, x):
        dense = {path: dense_footprint(leaf) for path, leaf in x.items()}
        return {path: dataclasses.replace(f, values=f.nonzeros) for path, f in dense.items()}


def _ends(x: Mapping[str, Any]) -> dict[str, int]:
    """Where every leaf ends in the vector of all, in its order."""
    return dict(zip(sorted(x), itertools.accumulate(x[path].size for path in sorted(x)), strict=True))
