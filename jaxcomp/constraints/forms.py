"""What the members of a set have in common that storage can leave out: which weights are zero, equal, of few values.

A constraint says so by `Constraint.forms`, from the outermost form to the innermost. Each form says one thing of the
weights that those before it left, and leaves fewer, or simpler ones, to those after it; what is left in the end is
stored as it stands. ``(Support(view), Codes(whole()))``: which groups are not zero, then their weights as codes.

Forms are plain data. How each is written and read is known to `jaxcomp.storage`, which finds what they speak of (which
groups, what scale) in the weights themselves, and passes over a form that does not hold of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from jaxcomp.constraints._views import Layout, View, elements, outputs, whole

_MATRIX = Layout("oi")


class Form:
    """One thing that is known of a leaf's weights.

    `place` says which of several forms comes first; `rounded`, whether weights are sums, known to rounding only.
    """

    place: ClassVar[int]

    @property
    def rounded(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class Part(Form):
    """The leaf, entry after entry, is a part of a vector of this size, from an origin on; of that other forms hold."""

    origin: int
    size: int
    of: tuple[Form, ...] = ()
    place = -1

    @property
    def rounded(self):
        return any(form.rounded for form in self.of)


@dataclasses.dataclass(frozen=True)
class Support(Form):
    """Groups of zeros: a bit for every group, or the numbers of the others in their pools."""

    view: View
    place = 0


@dataclasses.dataclass(frozen=True)
class Patterns(Form):
    """Every group has its weights at the places that one of the masks ``library``, ``[patterns, elements]``, names."""

    view: View
    library: Any
    place = 1


@dataclasses.dataclass(frozen=True)
class Unlike(Form):
    """Some groups are zero, some have one magnitude, and the others are free: a code for every group."""

    view: View
    place = 2


@dataclasses.dataclass(frozen=True)
class Sides(Form):
    """The weights of a group have one sign, and those of either sign are of a kind: a bit for every group.

    As `Signs`, but what comes after it is said twice, of groups below zero and of the others.
    """

    view: View
    place = 3


@dataclasses.dataclass(frozen=True)
class Signs(Form):
    """The weights of a group have one sign: a bit for every group, and magnitudes."""

    view: View
    place = 3


@dataclasses.dataclass(frozen=True)
class Shared(Form):
    """The weights of a group are equal: one for every group."""

    view: View
    place = 4


@dataclasses.dataclass(frozen=True)
class Codes(Form):
    """Few values: a code for every weight, and the values.

    Args:
        view: groups with values of their own.
        levels: magnitudes of which the weights are a multiple, with a scale for every group. Without them, the values
            of every group are listed.
        offset: the weights are an offset and multiples, ``a q + b``, with an a and a b for every group.
    """

    view: View
    levels: Any = None
    offset: bool = False
    place = 5

    @property
    def rounded(self):
        return self.offset


@dataclasses.dataclass(frozen=True)
class Submatrix(Form):
    """Weights only in these rows and columns of the leaf's matrix; of the matrix that these make, other forms hold."""

    layout: Layout | None
    outputs: Any
    inputs: Any
    of: tuple[Form, ...] = ()
    place = 2

    @property
    def rounded(self):
        return any(form.rounded for form in self.of)


@dataclasses.dataclass(frozen=True)
class Factors(Form):
    """The leaf's matrix is a product of two, with so many columns and rows between them."""

    layout: Layout | None
    rank: int
    place = 6

    @property
    def rounded(self):
        return True


Forms = tuple[Form, ...]


def in_order(*parts: Forms) -> Forms:
    """The forms of several sets at once: what says which weights there are, before what says of which kind."""
    return tuple(sorted(sum(parts, ()), key=lambda form: form.place))


def of_any_shape(forms: Forms) -> Forms:
    """Those that hold of other arrays of the same weights: what is said of single weights, or of all of them."""
    return _seen(forms, lambda view: elements() if view.is_flat else whole() if view.is_whole else None)


def of_submatrix(forms: Forms) -> Forms:
    """Those that hold of some rows and columns of the leaf's matrix too, outputs by inputs: what is said of outputs."""

    def of_rows(view: View) -> View | None:
        return outputs(_MATRIX) if dataclasses.replace(view, layout=None) == outputs() else None

    return in_order(of_any_shape(forms), _seen(forms, of_rows))


def _seen(forms: Forms, through: Callable[[View], View | None]) -> Forms:
    """The forms that speak of a view for which there is another, through that."""
    found: list[Form] = []
    for form in forms:
        same: Any = form
        view = through(same.view) if hasattr(form, "view") else None
        if view is not None:
            found.append(dataclasses.replace(same, view=view))
    return tuple(found)


def magnitudes(levels: Any) -> np.ndarray | None:
    """The levels above zero, ascending, as far as they are known to be so many."""
    count = int(np.ceil(2.0 ** (float(np.asarray(levels.bits)) - 1)))
    try:
        # As one program, like a projection: a product and a sum that are fused round otherwise than one by one.
        found = np.asarray(jax.jit(levels.nearest)(levels.largest(np.arange(max(count, 1)))), np.float64)
    except NotImplementedError:
        return None
    return np.unique(found[found > 0])
