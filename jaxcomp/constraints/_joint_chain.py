"""Several sets at once on one group of leaves, which may overlap."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._compose import OfParts, stored_at_once
from jaxcomp.constraints._constraint import Constraint, Footprint
from jaxcomp.constraints._joint import Glued, Joint
from jaxcomp.constraints._quantized import Quantized
from jaxcomp.constraints._tied import Tied
from jaxcomp.constraints.forms import Forms, in_order


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Each(Joint):
    """Every leaf of the group in a set of its own: a constraint on one array as a `Joint`. Exact if that is.

    Args:
        inner: the constraint of all leaves, or ``{path: Constraint}``, as `fit` leaves it.

    >>> from jaxcomp.constraints import Sparse
    >>> Each(Sparse(0.5)).project({"fc1": jnp.array([3.0, 1.0])})["fc1"].tolist()
    [3.0, 0.0]
    """

    inner: Constraint | Mapping[str, Constraint]

    def of(self, path: str) -> Constraint:
        """The constraint of one leaf."""
        return self.inner if isinstance(self.inner, Constraint) else self.inner[path]

    def project(self, x):
        return {path: self.of(path).project(leaf) for path, leaf in x.items()}

    def tangent(self, x, v):
        return {path: self.of(path).tangent(leaf, v[path]) for path, leaf in x.items()}

    def footprint(self, x):
        return {path: self.of(path).footprint(leaf) for path, leaf in x.items()}

    def forms(self, x):
        return {path: self.of(path).forms(leaf) for path, leaf in x.items()}

    def fit(self, x):
        return Each({path: self.of(path).fit(leaf) for path, leaf in x.items()})

    def exact(self, shape):
        return all(self.of(path).exact(one) for path, one in shape.items())

    def check(self, x):
        for path, leaf in x.items():
            try:
                self.of(path).check(leaf)
            except ValueError as error:
                raise ValueError(f"'{path}': {error}") from None

    def each(self, x):
        return {path: self.of(path) for path in x}


@jax.tree_util.register_pytree_with_keys_class
class JointChain(OfParts, Joint):
    """Several sets at once on one group, applied in this order: ``{x : x in A, x in B, …}``.

    A `Joint` part acts on the leaves it `covers`, any other on every leaf by itself. Parts may overlap: a layer may
    share its inputs with the layer before it and its outputs with the layer behind (two `Coupled`), or the weights of
    a network that is sparse as a whole (`Together`) be quantized layer by layer. Every part must keep what those before
    it made, as those do that drop groups and those that leave zeros alone; then the result lies in every set. It is
    nearest if no leaf is in two sets, and need not be otherwise.

    >>> from jaxcomp.constraints import Binary, Sparse
    >>> from jaxcomp.constraints._joint import Together
    >>> chain = JointChain(Together(Sparse(0.5)), Quantized(Binary()))
    >>> layers = {"fc1": jnp.array([3.0, 1.0, 2.0]), "fc2": jnp.array([0.5])}
    >>> {path: x.tolist() for path, x in chain.project(layers).items()}
    {'fc1': [2.5, 0.0, 2.5], 'fc2': [0.0]}
    """

    def covers(self, path):
        return any(part.covers(path) for part in self._joint)

    def project(self, x):
        for part in self._joint:
            x = x | part.project(_covered(part, x))
        return x

    def tangent(self, x, v):
        """``v`` cut by every set in turn."""
        for part in self._joint:
            v = v | part.tangent(_covered(part, x), _covered(part, v))
        return v

    def footprint(self, x):
        """Of the share that each part stores, the next stores its own, but every non-zero; at the fewest bits of any.

        So columns of rows that are dropped need not be stored. Index and side information adds up.
        """
        found: dict[str, Footprint] = {}
        for part in self._joint:
            for path, one in part.footprint(_covered(part, x)).items():
                if path in found:
                    before = found[path]
                    share = jnp.ceil(before.values * (one.values / one.size)).astype(jnp.int32)
                    one = stored_at_once(before, one, jnp.maximum(share, one.nonzeros))
                found[path] = one
        return found

    def forms(self, x):
        found: dict[str, Forms] = {}
        for part in self._joint:
            for path, forms in part.forms(_covered(part, x)).items():
                found[path] = in_order(found.get(path, ()), forms)
        return found

    def fit(self, x):
        return JointChain(*(part.fit(_covered(part, x)) for part in self._joint))

    def exact(self, shape):
        alone = max(Counter(path for part in self._joint for path in _covered(part, shape)).values()) == 1
        return alone and all(part.exact(_covered(part, shape)) for part in self._joint)

    def check(self, x):
        if not self.parts:
            raise ValueError("JointChain needs at least one constraint, found none")
        free = [path for path in x if not self.covers(path)]
        if free:
            raise ValueError(f"no part of {self} says anything of {free}: narrow the rule, or name them in a part")
        for part in self._joint:
            part.check(_covered(part, x))
        inner = [part.inner if isinstance(part, Glued | Each) else part for part in self.parts]
        for kind, most in ((Tied, 0), (Quantized, 1)):
            if len(inner) > 1 and sum(isinstance(part, kind) for part in inner) > most:
                beside = "another set" if kind is Tied else "another of its kind"
                raise ValueError(f"{self} puts {kind.__name__} beside {beside}, one of which the other would undo")

    @property
    def _joint(self) -> list[Joint]:
        return [part if isinstance(part, Joint) else Each(part) for part in self.parts]


def _covered(part: Joint, x: Mapping) -> dict:
    return {path: leaf for path, leaf in x.items() if part.covers(path)}
