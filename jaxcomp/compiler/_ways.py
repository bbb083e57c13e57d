"""What else could do a product: packed forms of its matrix, and the smaller convolution that its zeros leave."""

import math

import numpy as np

from jaxcomp.compiler import _contraction, _convolution
from jaxcomp.compiler._rewrite import Site, Way
from jaxcomp.compiler.formats import candidates


def ways(site: Site, smallest: bool, portable: bool) -> list[Way]:
    """Pytrees of arrays that are called with the activation, each exactly the product but for the order of additions.

    Their arrays have a leading axis for every scan over whose steps the weights vary. Those that are unlikely to be
    faster are left out, unless the smallest is looked for, however slow.
    """
    if site.eqn.primitive.name == "dot_general":
        matrix = _contraction.matrix(site)
        packed = candidates(matrix, _rows(site, matrix, smallest), portable)
        return [_contraction.contraction(site, each) for each in packed]
    if not _convolution.is_plain(site):
        return []
    matrix = _convolution.matrix(site)
    packed = candidates(matrix, _rows(site, matrix, smallest), portable)
    return [*_convolution.narrowed(site), *(_convolution.windows(site, each) for each in packed)]


def _rows(site: Site, matrix: np.ndarray, smallest: bool) -> int | None:
    """How many rows a matrix is multiplied with, where that matters."""
    matrices = math.prod(matrix.shape[len(site.weights.loops) : -2])
    return None if smallest else math.prod(site.eqn.outvars[0].aval.shape) // (matrices * matrix.shape[-1])
