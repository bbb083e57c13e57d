"""Which axis of a leaf is which: what makes a matrix, outputs by inputs, of a kernel in any library's order."""

import dataclasses

import jax
import numpy as np

_FLAX = {0: "", 1: "o", 2: "io", 3: "hio", 4: "hwio", 5: "dhwio"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axis of a leaf is which: one letter an axis, ``o`` for outputs, ``i`` for inputs, any other for taps.

    The matrix of a leaf is outputs by inputs, the inputs of a convolution ordered (channel, taps). A letter may
    stand more than once: attention's ``(inputs, heads, width)`` is ``Layout("ioo")``.

    >>> Layout("hwio").matrix_shape((5, 5, 20, 50))
    (50, 500)
    >>> Layout("oihw").matrix_shape((50, 20, 5, 5))
    (50, 500)
    """

    axes: str

    @staticmethod
    def of(ndim: int) -> "Layout":
        """Flax's layout for a rank: ``(in, out)``, ``HWIO``; a vector counts as outputs."""
        if ndim not in _FLAX:
            raise ValueError(
                f"no default layout for rank {ndim} (flax's go up to {max(_FLAX)}); give the view a Layout, "
                "one letter an axis: 'o' output, 'i' input, any other a tap of the kernel"
            )
        return Layout(_FLAX[ndim])

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Outputs, channels and taps of a leaf of this shape."""
        if len(self.axes) != len(shape):
            raise ValueError(
                f"layout '{self.axes}' names {len(self.axes)} axes, the leaf has {len(shape)}: shape {shape}"
            )
        sizes = {"o": 1, "i": 1, "taps": 1}
        for n, axis in zip(shape, self.axes, strict=True):
            sizes[axis if axis in "oi" else "taps"] *= n
        return sizes["o"], sizes["i"], sizes["taps"]

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        outputs, channels, taps = self.sizes(shape)
        return outputs, channels * taps

    def _order(self) -> tuple[int, ...]:
        rank = {"o": 0, "i": 1}
        return tuple(sorted(range(len(self.axes)), key=lambda axis: rank.get(self.axes[axis], 2)))

    def to_matrix(self, x: jax.Array) -> jax.Array:
        """The leaf as ``[outputs, inputs]``."""
        return x.transpose(self._order()).reshape(self.matrix_shape(x.shape))

    def from_matrix(self, matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `to_matrix` for a leaf of this shape."""
        order = self._order()
        return matrix.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
