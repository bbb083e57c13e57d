"""Channels that run through several leaves, kept or dropped in all of them at once."""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.constraints._constraint import Constraint
from jaxcomp.constraints._joint import Glued, Joint
from jaxcomp.constraints._sparse import group_footprint
from jaxcomp.constraints._views import Layout, View
from jaxcomp.constraints.forms import Support, in_order, of_any_shape


@jax.tree_util.register_pytree_with_keys_class
class Coupled(Glued):
    """Channels that several leaves share, as the filters of one layer that are the input channels of the next.

    Every leaf is seen as channels by entries. Entry after entry they make one matrix, laid out as flax lays out a
    dense layer of which the channels are the outputs, that must lie in the inner set. With ``Sparse(0.5, outputs())``
    half of the channels are kept, those of largest norm over all leaves; the others are zero in every leaf, and can be
    removed from the network with no change to what it computes. Exact if the inner projection is.

    Args:
        inner: a constraint on the matrix ``[entries, channels]``.
        views: ``{pattern: View}``: paths, or regular expressions as in `jaxcomp.assign`; the first that matches a
            leaf's path gives its view, whose groups are the leaf's channels. A bias or the scale of a normalisation
            joins by ``outputs()``, a dense layer behind a flattened image by `folded`.

    >>> from jaxcomp.constraints import Sparse, inputs, outputs
    >>> coupled = Coupled(Sparse(0.5, outputs()), {"fc1/.*": outputs(), "fc2/kernel": inputs()})
    >>> layers = {"fc1/kernel": jnp.array([[1.0, 2.0]]), "fc1/bias": jnp.ones(2), "fc2/kernel": jnp.array([[3.0], [1]])}
    >>> {path: x.tolist() for path, x in coupled.project(layers).items()}
    {'fc1/bias': [1.0, 0.0], 'fc1/kernel': [[1.0, 0.0]], 'fc2/kernel': [[3.0], [0.0]]}
    """

    def __init__(self, inner: Constraint, views: Mapping[str, View]):
        self.inner, self.views = inner, views

    def __repr__(self) -> str:
        return f"Coupled({self.inner!r}, {self.views!r})"

    def __eq__(self, other: object) -> bool:  # and so not hashable: the inner constraint may hold arrays
        return isinstance(other, Coupled) and (self.inner, self.views) == (other.inner, other.views)

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("inner"), self.inner)], tuple(self.views.items())

    @classmethod
    def tree_unflatten(cls, views, children):
        return cls(children[0], dict(views))

    def covers(self, path):
        return any(_matches(pattern, path) for pattern in self.views)

    def forms(self, x):
        of_all = of_any_shape(self.inner.forms(self._glue(x)))
        return {path: in_order((Support(self._view(path)),), of_all) for path in x}

    def fit(self, x):
        return Coupled(self.inner.fit(self._glue(x)), self.views)

    def check(self, x):
        Joint.check(self, x)
        unseen = [path for path in x if not self.covers(path)]
        idle = [pattern for pattern in self.views if not any(_matches(pattern, path) for path in x)]
        if unseen or idle:
            what = f"no view for {unseen}" if unseen else f"views for {idle}, which match no leaf"
            raise ValueError(
                f"Coupled has {what}; the leaves are {list(x)}, the patterns {list(self.views)}: "
                "the rule and the views must name the same leaves"
            )
        counts = {path: _channels(path, self._view(path), leaf.shape) for path, leaf in x.items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{n} of '{path}' by {self._view(path)}" for path, n in counts.items())
            raise ValueError(
                f"Coupled needs as many channels in every leaf, found {found}: give the leaf that differs the view "
                "of its shared axis, or `folded` if it reads flattened channels"
            )
        self.inner.check(self._glued(x))

    def _view(self, path: str) -> View:
        return next(view for pattern, view in self.views.items() if _matches(pattern, path))

    def _glue(self, x):
        return jnp.concatenate([self._view(path).split(x[path])[0] for path in sorted(x)], axis=1).T

    def _cut(self, whole, like):
        ends = np.cumsum([like[path].size // whole.shape[1] for path in sorted(like)])
        parts = zip(sorted(like), jnp.split(whole, ends[:-1]), strict=True)
        return {p: self._view(p).merge(part.T[None], like[p].shape).astype(like[p].dtype) for p, part in parts}

    def _lie(self, x):
        used = jnp.any(self._glue(x) != 0, axis=0)
        entries = {path: leaf.size // used.size for path, leaf in x.items()}
        lie = {path: group_footprint(leaf, self._view(path)) for path, leaf in x.items()}
        return {path: dataclasses.replace(f, values=jnp.sum(used) * entries[path]) for path, f in lie.items()}


def _matches(pattern: str, path: str) -> bool:
    try:
        return pattern == path or bool(re.fullmatch(pattern, path))
    except re.error as error:
        raise ValueError(f"{pattern!r} in views is neither a path nor a regular expression: {error}") from None


def _channels(path: str, view: View, shape: tuple[int, ...]) -> int:
    try:
        sizes = view.sizes(shape)
        pools = jax.eval_shape(view.split, jax.ShapeDtypeStruct(shape, jnp.float32)).shape[0]
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    if pools > 1 or np.ptp(sizes.elements):
        raise ValueError(
            f"'{path}' of shape {shape} seen by {view} has {pools} pools of groups of {np.unique(sizes.elements)} "
            "weights: Coupled needs one pool of groups of equal size, which are its channels"
        )
    return sizes.total


def folded(channels: int, first: bool = False, layout: Layout | None = None) -> View:
    """A group is a channel of the image that a dense layer reads flattened: all its inputs from that channel.

    Channels come last in flax, so that channel c owns the inputs of index c modulo ``channels``.

    Args:
        channels: how many there are; with ``first=True`` how many *positions* each has (height times width): channels
            come first, as in torch, and each owns a run of so many inputs.
        first: whether channels come before positions.
        layout: how the leaf is laid out.

    >>> folded(2).split(jnp.arange(4.0)[:, None]).tolist()
    [[[0.0, 2.0], [1.0, 3.0]]]
    """
    name = f"folded({channels}{', first=True' if first else ''})"
    groups, elements = ("C", "rc") if first else ("c", "rC")
    return View(name, None, channels, "R", groups, elements, layout=layout)
