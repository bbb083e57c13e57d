"""What the members of a set have in common that storage can leave out: which weights are zero, equal, of few values.

A constraint says so by `Constraint.forms`, from the outermost form to the innermost. Each form says one thing of the
weights that those before it left, and leaves fewer, or simpler ones, to those after it; what is left in the end is
stored as it stands. ``(Support(view), Codes(whole()))``: which groups are not zero, then their weights as codes.

Forms are plain data. How each is written and read is known to `jaxcomp.storage`, which finds what they speak of (which
groups, what scale) in the weights themselves, and passes over a form that does not hold of them.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from jaxcomp.constraints._views import Layout, View, elements, whole


class Form:
    """One thing that is known of a leaf's weights. `place` says which of several forms comes first."""

    place: ClassVar[int]


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


@dataclasses.dataclass(frozen=True)
class Submatrix(Form):
    """Weights only in these rows and columns of the leaf's matrix; of the matrix that these make, other forms hold."""

    layout: Layout | None
    outputs: Any
    inputs: Any
    of: tuple[Form, ...] = ()
    place = 2


@dataclasses.dataclass(frozen=True)
class Factors(Form):
    """The leaf's matrix is a product of two, with so many columns and rows between them."""

    layout: Layout | None
    rank: int
    place = 6


Forms = tuple[Form, ...]


def in_order(*parts: Forms) -> Forms:
    """The forms of several sets at once: what says which weights there are, before what says of which kind."""
    return tuple(sorted(sum(parts, ()), key=lambda form: form.place))


def of_any_shape(forms: Forms) -> Forms:
    """Those that hold of other arrays of the same weights: what is said of single weights, or of all of them."""
    found: list[Form] = []
    for form in forms:
        view = getattr(form, "view", None)
        if view is not None and (view.is_flat or view.is_whole):
            same: Any = form
            found.append(dataclasses.replace(same, view=elements() if view.is_flat else whole()))
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
