"""The size of a product, from the operation that does it in a traced program."""

import math
from collections.abc import Callable
from typing import Any


def _dot(eqn: Any, right: int, numbers: int | None) -> dict[str, Any]:
    """Of `dot_general`; operand number ``right`` is the weights, or whatever takes their part.

    So many numbers of its own it has if it has been spread over the batch axes, and is then one matrix for all.
    """
    contracted, batched = eqn.params["dimension_numbers"]
    shapes = [var.aval.shape for var in eqn.invars]
    groups = math.prod(shapes[0][axis] for axis in batched[0])
    depth = math.prod(shapes[0][axis] for axis in contracted[0])
    rows, columns = (
        math.prod(n for axis, n in enumerate(shapes[i]) if axis not in (*contracted[i], *batched[i]))
        for i in (1 - right, right)
    )
    if numbers is not None and numbers * groups <= math.prod(shapes[right]):
        rows, groups = rows * groups, 1
    return {"batch": rows, "groups": groups, "inputs": groups * depth, "outputs": groups * columns}


def _ragged_dot(eqn: Any, right: int, numbers: int | None) -> dict[str, Any]:
    """Of `ragged_dot_general` in its usual form: every row is multiplied by the matrix of its own group.

    As many rows are taken to go to every group; what is counted in all does not depend on that.
    """
    (rows, depth), (groups, _, columns) = (var.aval.shape for var in eqn.invars[:2])
    return {"batch": _by(rows, groups), "groups": groups, "inputs": groups * depth, "outputs": groups * columns}


def _convolution(eqn: Any, right: int, numbers: int | None) -> dict[str, Any]:
    """Of `conv_general_dilated` with any layout, as an image: of a volume, depth is folded into height.

    Places in the padding are counted, zeros that spread pixels apart (a transposed convolution) are not: that is the
    ordinary convolution which finds all sub-pixels of an output as channels, with its share of the kernel each.
    """
    params, numbers_of = eqn.params, eqn.params["dimension_numbers"]
    image, kernel = (var.aval.shape for var in eqn.invars)
    out = eqn.outvars[0].aval.shape
    batch, channels = (image[axis] for axis in numbers_of.lhs_spec[:2])
    apart = _plane(params["lhs_dilation"])
    kernel_size = _plane([kernel[axis] for axis in numbers_of.rhs_spec[2:]])
    in_size = _plane([image[axis] for axis in numbers_of.lhs_spec[2:]])
    out_size = _plane([out[axis] for axis in numbers_of.out_spec[2:]])
    # Groups of images, each with filters of its own (in the gradient of a grouped convolution), are groups of channels.
    of_images = params["batch_group_count"]
    return {
        "batch": batch // of_images,
        "groups": params["feature_group_count"] * of_images,
        "inputs": channels * of_images,
        "outputs": kernel[numbers_of.rhs_spec[0]] * math.prod(apart),
        "kernel_h": _by(kernel_size[0], apart[0]),
        "kernel_w": _by(kernel_size[1], apart[1]),
        "in_h": in_size[0],
        "in_w": in_size[1],
        "out_h": _by(out_size[0], apart[0]),
        "out_w": _by(out_size[1], apart[1]),
        "stride": params["window_strides"][0] if params["window_strides"] else 1,
    }


def _plane(sizes: Any) -> tuple[int, int]:
    """Along height and width; a signal has width only."""
    return math.prod(sizes[:-1]), math.prod(sizes[-1:])


def _by(number: int, parts: int) -> int | float:
    """A part, whole if it comes out even."""
    return number / parts if number % parts else number // parts


_PRODUCTS: dict[str, Callable[[Any, int, int | None], dict[str, Any]]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
