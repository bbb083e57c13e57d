"""Views: lossless, and each cuts a leaf into the pools and groups that its name says."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import (
    Layout,
    banks,
    block_columns,
    block_rows,
    blocks,
    chunks,
    diagonals,
    elements,
    fragments,
    inputs,
    kernels,
    outputs,
    punched,
    whole,
)
from jaxcomp.constraints._views import nested

# Of every view with tiles of r by c: where output o and input i = channel * taps + tap belong, (pool, group).
DESCRIPTIONS = {
    "elements": (lambda r, c, l: elements(l), lambda o, i, taps, r, c: (0, (o, i))),
    "whole": (lambda r, c, l: whole(l), lambda o, i, taps, r, c: (0, 0)),
    "outputs": (lambda r, c, l: outputs(l), lambda o, i, taps, r, c: (0, o)),
    "inputs": (lambda r, c, l: inputs(layout=l), lambda o, i, taps, r, c: (0, i // taps)),
    "inputs with taps": (lambda r, c, l: inputs(True, l), lambda o, i, taps, r, c: (0, i)),
    "blocks": (lambda r, c, l: blocks(r, c, l), lambda o, i, taps, r, c: (0, (o // r, i // c))),
    "block_columns": (lambda r, c, l: block_columns(r, c, l), lambda o, i, taps, r, c: ((o // r, i // c), i)),
    "block_rows": (lambda r, c, l: block_rows(r, c, l), lambda o, i, taps, r, c: ((o // r, i // c), o)),
    "free block_columns": (
        lambda r, c, l: block_columns(r, c, l, free=True),
        lambda o, i, taps, r, c: (0, (o // r, i)),
    ),
    "free block_rows": (lambda r, c, l: block_rows(r, c, l, free=True), lambda o, i, taps, r, c: (0, (o, i // c))),
    "banks of two channels": (lambda r, c, l: banks(2, l), lambda o, i, taps, r, c: ((o, i // taps % 2), i)),
    "kernels": (lambda r, c, l: kernels(l), lambda o, i, taps, r, c: (0, (o, i // taps))),
    "punched": (
        lambda r, c, l: punched(r, 1, l),
        lambda o, i, taps, r, c: ((o // r, i // taps), i % taps),
    ),
    "free punched, of two channels": (
        lambda r, c, l: punched(r, 2, l, free=True),
        lambda o, i, taps, r, c: (0, (o // r, i // taps // 2, i % taps)),
    ),
    "chunks": (lambda r, c, l: chunks(c, l), lambda o, i, taps, r, c: ((o, i // c), i)),
    "fragments": (lambda r, c, l: fragments(c, l), lambda o, i, taps, r, c: (0, (o, i // c))),
    "diagonals": (
        lambda r, c, l: diagonals(min(r, c), l),
        lambda o, i, taps, r, c: (0, (o // min(r, c), i // min(r, c), (o - i) % min(r, c))),
    ),
}
LAYOUTS = ["o", "io", "oi", "hio", "hwio", "oihw", "ioo", "iio", "dhwio", "oxiyo"]


def fitting(name):
    """Layouts that a view fits, and the least length of their axes."""
    with_taps = name == "kernels" or "punched" in name
    two = "two channels" in name
    return [x for x in LAYOUTS if (not with_taps or set(x) - set("oi")) and (not two or "i" in x)], 1 + two


@st.composite
def leaves(draw, layouts=LAYOUTS, least=1):
    """A layout, a shape for it, and the sides of a tile that fits."""
    layout = Layout(draw(st.sampled_from(layouts)))
    shape = tuple(draw(st.lists(st.integers(least, 4), min_size=len(layout.axes), max_size=len(layout.axes))))
    r, c = (draw(st.integers(1, most)) for most in layout.matrix_shape(shape))
    return layout, shape, r, c


def ranks(index, shape, layout, letters):
    """The number of an entry along the axes of these letters, taken together."""
    axes = [axis for axis, letter in enumerate(layout.axes) if letter in letters]
    return int(np.ravel_multi_index([index[a] for a in axes], [shape[a] for a in axes])) if axes else 0


def described(name, layout, shape, r, c):
    """``{(pool, group): flat positions}``, by the table above and a walk over all entries."""
    letters = set(layout.axes) - set("oi")
    taps = int(np.prod([n for n, letter in zip(shape, layout.axes, strict=True) if letter in letters], dtype=int))
    belong = {}
    for position, index in enumerate(np.ndindex(shape)):
        o = ranks(index, shape, layout, "o")
        i = ranks(index, shape, layout, "i") * taps + ranks(index, shape, layout, letters)
        belong.setdefault(DESCRIPTIONS[name][1](o, i, taps, r, c), []).append(position)
    return belong


@pytest.mark.slow
@pytest.mark.parametrize("name", DESCRIPTIONS)
@given(data=st.data())
def test_tiles_hold_the_same_groups_as_the_parts(name, data):
    layout, shape, r, c = data.draw(leaves(*fitting(name)))
    view = DESCRIPTIONS[name][0](r, c, layout)
    x = jnp.asarray(np.random.default_rng(0).integers(1, 9, shape).astype(np.float32))
    tiles, inside = view.tiles(x)
    np.testing.assert_array_equal(view.untile(tiles, shape), x)
    sums = view.collect(jnp.sum(tiles, axis=inside, keepdims=True), shape)
    np.testing.assert_array_equal(sums, view.split(x).sum(axis=2))
    numbers = jnp.arange(sums.size).reshape(sums.shape)
    everywhere = view.untile(jnp.broadcast_to(view.hand_out(numbers, shape), tiles.shape), shape)
    np.testing.assert_array_equal(everywhere, view.labels(shape))


@pytest.mark.parametrize("name", DESCRIPTIONS)
@given(data=st.data())
def test_a_view_cuts_every_leaf_into_the_pools_and_groups_of_its_description(name, data):
    layout, shape, r, c = leaf = data.draw(leaves(*fitting(name)))
    view, expected = DESCRIPTIONS[name][0](r, c, layout), described(name, *leaf)
    labels, pools = view.labels(shape).ravel(), view.labels(shape, "pools").ravel()

    groups_of_pool = {}
    for (pool, _), positions in expected.items():
        groups_of_pool.setdefault(pool, []).append(positions)
    assert {tuple(np.flatnonzero(labels == n)) for n in np.unique(labels)} == set(map(tuple, expected.values()))
    assert {tuple(np.flatnonzero(pools == n)) for n in np.unique(pools)} == {
        tuple(sorted(itertools.chain(*groups))) for groups in groups_of_pool.values()
    }

    sizes, parts = view.sizes(shape), view.split(np.ones(shape))
    assert sizes.total == len(expected)
    counts, lengths = np.broadcast_to(sizes.groups, parts.shape[0]), np.broadcast_to(sizes.elements, parts.shape[:2])
    assert sorted(counts[counts > 0]) == sorted(map(len, groups_of_pool.values()))
    assert sorted(lengths[lengths > 0]) == sorted(map(len, expected.values()))
    np.testing.assert_array_equal(parts.sum(axis=2), lengths)  # padding is zero


@pytest.mark.parametrize("name", DESCRIPTIONS)
@given(data=st.data())
def test_split_and_merge_lose_nothing(name, data):
    layout, shape, r, c = data.draw(leaves(*fitting(name)))
    view, x = DESCRIPTIONS[name][0](r, c, layout), np.arange(np.prod(shape)).reshape(shape) + 1
    parts = view.split(x)
    np.testing.assert_array_equal(view.merge(parts, shape), x)
    np.testing.assert_array_equal(view.merge(np.where(parts == 0, -1, parts), shape), x)  # padding is dropped


def test_jax_arrays_are_split_and_merged_as_numpy_arrays_are():
    x, view = np.arange(35.0, dtype=np.float32).reshape(5, 7), diagonals(3)
    parts = view.split(jnp.asarray(x))
    np.testing.assert_array_equal(parts, view.split(x))
    np.testing.assert_array_equal(view.merge(parts, x.shape), x)


@pytest.mark.parametrize("shape, axes", [((3,), "o"), ((3, 2), "io"), ((2, 3, 4, 5), "hwio"), ((2,) * 5, "dhwio")])
def test_the_layout_of_a_leaf_is_flax_s_unless_one_is_given(shape, axes):
    x = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(outputs().split(x), outputs(Layout(axes)).split(x))


def test_the_inputs_of_a_convolution_are_ordered_by_channel_then_tap():
    hwio = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
    matrix = Layout("hwio").to_matrix(hwio)
    np.testing.assert_array_equal(matrix, Layout("oihw").to_matrix(hwio.transpose(3, 2, 0, 1)))
    np.testing.assert_array_equal(matrix[1, :4], hwio[:, :, 0, 1].ravel())


def test_elements_need_no_layout_at_any_rank():
    x = np.arange(64).reshape((2,) * 6)
    np.testing.assert_array_equal(elements().merge(elements().split(x), x.shape), x)
    assert elements().sizes(x.shape).total == 64


@pytest.mark.parametrize(
    "view, shape, message",
    [
        (blocks(4, 2), (6, 3), r"blocks\(4, 2\) needs 4 outputs a tile.*\(6, 3\).* has 3"),
        (fragments(7), (6, 3), r"fragments\(7\) needs 7 inputs a tile.*\(6, 3\).* has 6"),
        (blocks(0, 2), (6, 3), r"needs 0 outputs .*whole number from 1"),
        (blocks(2.0, 2), (6, 3), r"needs 2\.0 outputs .*whole number from 1"),
        (kernels(), (6, 3), r"kernels\(\).*\(6, 3\).*layout 'io' has none.*convolutions"),
        (outputs(Layout("oihw")), (6, 3), r"layout 'oihw' names 4 axes, the leaf has 2: shape \(6, 3\)"),
        (elements(Layout("oi")), (2, 3, 4), r"layout 'oi' names 2 axes, the leaf has 3"),
        (outputs(), (2,) * 6, r"no default layout for rank 6 .*up to 5.*give the view a Layout"),
    ],
)
def test_a_view_that_does_not_fit_is_an_error_that_names_both_and_says_what_would(view, shape, message):
    with pytest.raises(ValueError, match=message):
        view.sizes(shape)


@pytest.mark.parametrize(
    "inner, outer, axis, expected",
    [
        (fragments(2), outputs(), "groups", True),
        (fragments(2), fragments(4), "groups", True),
        (fragments(4), fragments(2), "groups", False),
        (fragments(2), inputs(), "groups", False),
        (chunks(4), outputs(), "pools", True),
        (elements(), outputs(), "pools", False),
        (diagonals(2), blocks(2, 2), "groups", True),
        (diagonals(3), whole(), "groups", True),
    ],
)
def test_nested_says_whether_groups_lie_within_groups(inner, outer, axis, expected):
    assert nested(inner, outer, (8, 6), axis) is expected
