"""A `conv_general_dilated` as windows times a packed matrix, or as the smaller convolution that its zeros leave."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler._rewrite import Site


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Windows:
    """A way of doing a convolution: the window of every output place is a row, and the rows go through a format.

    Attributes:
        format: of the matrix ``[taps * channels, filters]``.
        taps: sizes of the window.
        numbers: the order of axes in image, kernel and output.
        strides, padding, dilation: as of the convolution.
        dtype: of the output.
    """

    format: Any
    taps: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    numbers: Any = dataclasses.field(metadata={"static": True})
    strides: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    padding: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    dilation: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, channels, *space = self.numbers.lhs_spec
        x = x.transpose(batch, *space, channels)
        low, high = zip(*self.padding, strict=True)
        x = lax.pad(
            x, jnp.zeros((), x.dtype), [(0, 0, 0), *((a, b, 0) for a, b in zip(low, high, strict=True)), (0, 0, 0)]
        )
        reach = [(taps - 1) * apart for taps, apart in zip(self.taps, self.dilation, strict=True)]
        windows = []
        for tap in itertools.product(*map(range, self.taps)):
            start = [i * apart for i, apart in zip(tap, self.dilation, strict=True)]
            stop = [n - far + i for n, far, i in zip(x.shape[1:-1], reach, start, strict=True)]
            windows.append(lax.slice(x, [0, *start, 0], [len(x), *stop, x.shape[-1]], [1, *self.strides, 1]))
        y = self.format(jnp.concatenate(windows, -1) if len(windows) > 1 else windows[0], self.dtype)
        batch, channels, *space = self.numbers.out_spec
        return y.transpose(np.argsort([batch, *space, channels])).astype(self.dtype)

    def describe(self) -> str:
        return f"windows, {self.format.describe()}"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Narrowed:
    """A way of doing a convolution: without the channels, the filters and the outer taps that are all zero.

    Attributes:
        kernel: what is left of the kernel, its axes in their order.
        read: the channels of the image that are left, ``None`` for all.
        placed: for every filter of the whole its number among those left, and for one that is gone the number after
            the last; ``None`` where none is gone.
        params: static, of the operation, with what is padded less.
    """

    kernel: jax.Array
    read: jax.Array | None
    placed: jax.Array | None
    params: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        params = dict(self.params)
        numbers = params["dimension_numbers"]
        if self.read is not None:
            x = jnp.take(x, self.read, numbers.lhs_spec[1], mode="clip")
        y = lax.conv_general_dilated_p.bind(x, self.kernel, **params)
        if self.placed is None:
            return y
        axis = numbers.out_spec[1]
        y = jnp.pad(y, [(0, int(i == axis)) for i in range(y.ndim)])
        return jnp.take(y, self.placed, axis, mode="clip")

    def describe(self) -> str:
        filters, channels, *space = (
            self.kernel.shape[axis] for axis in dict(self.params)["dimension_numbers"].rhs_spec
        )
        return f"{filters} filters of {'x'.join(map(str, space))}x{channels}"


def is_plain(site: Site) -> bool:
    """Whether the weights are the kernel, of one group, over an image whose pixels are not spread apart."""
    params = site.eqn.params
    return (
        site.side == 1
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and all(apart == 1 for apart in params["lhs_dilation"])
    )


def matrix(site: Site) -> np.ndarray:
    """``[*loops, taps * channels, filters]``, the kernel of a convolution."""
    x = np.asarray(site.weights.array)
    loops = len(site.weights.loops)
    filters, channels, *space = (loops + axis for axis in site.eqn.params["dimension_numbers"].rhs_spec)
    x = x.transpose(*range(loops), *space, channels, filters)
    return x.reshape(*x.shape[:loops], -1, x.shape[-1])


def windows(site: Site, packed: Any) -> Windows:
    """The way that puts the packed matrix of a convolution to use."""
    params, kernel = site.eqn.params, site.eqn.invars[1].aval.shape
    return Windows(
        packed,
        tuple(kernel[axis] for axis in params["dimension_numbers"].rhs_spec[2:]),
        params["dimension_numbers"],
        tuple(params["window_strides"]),
        tuple(map(tuple, params["padding"])),
        tuple(params["rhs_dilation"]),
        site.eqn.outvars[0].aval.dtype,
    )


def narrowed(site: Site) -> list[Narrowed]:
    """The convolution that is left without what is zero; none where nothing is, or all is."""
    params = dict(site.eqn.params)
    x, loops = np.asarray(site.weights.array), len(site.weights.loops)
    filters, channels, *space = params["dimension_numbers"].rhs_spec
    used = np.any(x != 0, axis=tuple(range(loops)))
    kept = [np.flatnonzero(np.any(used, axis=tuple(i for i in range(used.ndim) if i != n))) for n in range(used.ndim)]
    if not used.any():
        return []
    for axis in space:  # taps go from the outside, so that the window stays one
        kept[axis] = np.arange(kept[axis][0], kept[axis][-1] + 1)
    if all(len(k) == n for k, n in zip(kept, used.shape, strict=True)):
        return []
    padding = []
    for axis, (low, high), apart in zip(space, params["padding"], params["rhs_dilation"], strict=True):
        last = used.shape[axis] - 1 - kept[axis][-1]
        padding.append((int(low - kept[axis][0] * apart), int(high - last * apart)))
    for axis, each in enumerate(kept):
        x = np.take(x, each, loops + axis)
    copies = x.shape[:loops]
    read = kept[channels] if len(kept[channels]) < used.shape[channels] else None
    gone = len(kept[filters]) < used.shape[filters]
    numbers = np.full(used.shape[filters], len(kept[filters]))
    numbers[kept[filters]] = np.arange(len(kept[filters]))
    params["padding"] = tuple(padding)
    return [
        Narrowed(
            jnp.asarray(x),
            None if read is None else _repeated(read, copies),
            _repeated(numbers, copies) if gone else None,
            tuple(params.items()),
        )
    ]


def _repeated(index: np.ndarray, copies: tuple[int, ...]) -> jax.Array:
    """One index for all steps of the loops around, which take one each."""
    return jnp.broadcast_to(jnp.asarray(index, jnp.int32), (*copies, *index.shape))
