"""Every form gives back what it was given, at the bits that it should take; what it does not fit is kept otherwise."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import (
    Layout,
    banks,
    block_columns,
    blocks,
    chunks,
    diagonals,
    elements,
    fragments,
    inputs,
    kernels,
    outputs,
    whole,
)
from jaxcomp.constraints.forms import (
    Codes,
    Factors,
    Patterns,
    Shared,
    Sides,
    Signs,
    Submatrix,
    Support,
    Unlike,
    in_order,
)
from jaxcomp.storage._leaf import read_leaf, write_leaf

DTYPES = {name: jnp.dtype(name) for name in ("float32", "bfloat16", "float16", "float64")}
SHAPES = {"io": (11, 7), "hwio": (3, 1, 4, 5), "oihw": (5, 4, 1, 3), "ioo": (7, 3, 2), "o": (9,)}
VIEWS = {
    "elements": elements,
    "whole": whole,
    "outputs": outputs,
    "inputs": lambda l: inputs(layout=l),
    "fragments": lambda l: fragments(3, l),
    "chunks": lambda l: chunks(2, l),
    "banks": lambda l: banks(3, l),
    "blocks": lambda l: blocks(2, 2, l),
    "columns of blocks": lambda l: block_columns(3, 2, l),
    "diagonals": lambda l: diagonals(3, l),
}
OF_MATRICES = {axes: shape for axes, shape in SHAPES.items() if axes != "o"}


@st.composite
def leaves(draw, shapes=OF_MATRICES):
    """A view, its layout, and a leaf of normal weights."""
    axes, dtype = draw(st.sampled_from(sorted(shapes))), draw(st.sampled_from(sorted(DTYPES)))
    view = VIEWS[draw(st.sampled_from(sorted(VIEWS)))](Layout(axes))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return view, rng.normal(size=shapes[axes]).astype(DTYPES[dtype]), rng


def of_groups(view, x):
    """The number of the group of every weight, from 0 and without gaps."""
    return np.unique(view.labels(x.shape), return_inverse=True)[1].reshape(x.shape)


def written(forms, x, tolerance=0.0):
    """The leaf written; it has come back."""
    found = write_leaf(forms, x, tolerance)
    back = found.data if found.node is None else read_leaf(found.node, found.data.tobytes(), x.shape, x.dtype)
    assert back.dtype == x.dtype
    assert np.array_equal(back, x) == (found.error == 0)
    assert found.error <= tolerance
    return found


def has(node, name):
    """Whether a form is in a tree of nodes."""
    of = (node or {}).get("of") or []
    return bool(node) and (node["form"] == name or any(has(one, name) for one in (of if type(of) is list else [of])))


@given(leaf=leaves(), density=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_zero_groups_are_left_out(leaf, density):
    view, x, rng = leaf
    group = of_groups(view, x)
    kept = rng.random(group.max() + 1) < density
    x = np.where(kept[group], x, 0).astype(x.dtype)
    found = written((Support(view),), x)
    bits = len(kept) + 8 * x.dtype.itemsize * np.count_nonzero(x)
    assert found.data.nbytes <= min(x.nbytes, -(-bits // 8) + 1)


@given(leaf=leaves(), free=st.booleans(), shift=st.sampled_from([0.0, 2.0]))
def test_weights_that_a_group_shares_are_kept_once(leaf, free, shift):
    view, x, rng = leaf
    group = of_groups(view, x)
    x = (rng.normal(size=group.max() + 1) + shift)[group].astype(x.dtype)
    if free:
        x = np.where(rng.random(x.shape) < 0.5, -x, x)
    forms = (Signs(elements()), Shared(view)) if free else (Shared(view),)
    bits = (group.max() + 1) * (8 * x.dtype.itemsize - free) + x.size * free
    assert written(forms, x).data.nbytes <= min(x.nbytes, bits / 8 + 2)


@given(leaf=leaves())
def test_groups_of_one_sign_keep_it_once(leaf):
    view, x, rng = leaf
    group = of_groups(view, x)
    x = np.where(rng.random(group.max() + 1)[group] < 0.5, -abs(x), abs(x))
    bits = x.size * (8 * x.dtype.itemsize - 1) + group.max() + 1
    assert written((Signs(view),), x).data.nbytes <= min(x.nbytes, bits / 8 + 2)


@given(leaf=leaves())
def test_groups_of_three_kinds_are_kept_each_as_it_is(leaf):
    view, x, rng = leaf
    group = of_groups(view, x)
    kind, size = rng.integers(0, 3, group.max() + 1)[group], np.abs(rng.normal(size=group.max() + 1))[group]
    x = np.choose(kind, [0 * x, np.copysign(size, x.astype(float)).astype(x.dtype), x])
    one = sum(len(np.unique(group[kind == k])) for k in (1,))
    bits = 2 * (group.max() + 1) + (kind == 1).sum() + (one + (kind == 2).sum()) * 8 * x.dtype.itemsize
    assert written((Unlike(view),), x).data.nbytes <= min(x.nbytes, bits / 8 + 10)


LEVELS = {
    "uniform": np.arange(1.0, 8),
    "eight bits": np.arange(1.0, 128),
    "one": np.array([1.0]),
    "powers": 2.0 ** -np.arange(7)[::-1],
    "states": np.linspace(0.1, 1.0, 8, dtype=np.float32).astype(float),
}


@given(
    leaf=leaves(), levels=st.sampled_from(sorted(LEVELS)), zeros=st.booleans(), size=st.sampled_from([1e-20, 1.0, 1e4])
)
def test_levels_times_a_scale_are_kept_as_codes_bit_for_bit(leaf, levels, zeros, size):
    view, x, rng = leaf
    size = 1.0 if x.dtype == np.float16 else size
    levels, wide = LEVELS[levels], np.promote_types(x.dtype, np.float32)
    scale = (size * np.abs(rng.normal(size=x.size))).astype(wide)[of_groups(view, x)]
    code = rng.integers(0 if zeros else 1, len(levels) + 1, x.shape)
    level = np.append(0, levels)[code] * rng.choice([-1, 1], x.shape)
    x = (level.astype(wide) * scale).astype(x.dtype)
    found = written((Codes(view, levels),), np.where(x == 0, np.zeros((), x.dtype), x))  # no negative zeros
    groups, values = len(np.unique(view.labels(x.shape))), 2 * len(levels) + zeros
    codes = math.ceil(1.02 * x.size * math.log2(values) / 8 + 10)
    assert found.data.nbytes <= min(x.nbytes, codes + wide.itemsize * (groups + len(levels)))


@pytest.mark.parametrize("levels", sorted(LEVELS))
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_scales_of_many_groups_are_all_found_again(levels, dtype):
    rng, wide = np.random.default_rng(0), np.promote_types(DTYPES[dtype], np.float32)
    scale, level = rng.lognormal(size=(1, 300)).astype(wide), rng.choice(LEVELS[levels], (200, 300)).astype(wide)
    x = (level * scale).astype(dtype)
    assert written((Codes(outputs(), LEVELS[levels]),), x).node["form"] in ("scaled", "listed")
    assert written((Codes(outputs(), LEVELS[levels]),), x).data.nbytes < 0.55 * x.nbytes


def test_an_integer_of_sixteen_bits_is_found_among_its_levels():
    rng = np.random.default_rng(0)
    x = (rng.integers(-32767, 32768, (64, 64)).astype(np.float32) * np.float32(0.0123)).astype(np.float32)
    x[0, 0] = np.float32(32767) * np.float32(0.0123)
    found = written((Codes(whole(), np.arange(1.0, 32768)),), x)
    assert found.node["form"] == "scaled"
    assert found.data.nbytes == 4 + 2 * x.size


def test_few_values_are_listed_where_no_levels_are_known():
    x = np.random.default_rng(0).choice(np.array([-1, 0, 0.3, 2], np.float32), (32, 32))
    found = written((Codes(whole()),), x)
    assert (found.node["form"], found.data.nbytes) == ("listed", 4 * 4 + 32 * 32 * 2 // 8)


def test_a_leaf_that_has_drifted_off_its_levels_is_packed_only_within_a_tolerance():
    rng = np.random.default_rng(0)
    x = rng.choice(np.arange(-7.0, 8), (64, 64)) * np.exp(rng.normal(size=(1, 64)))
    x = (x * (1 + 1e-7 * rng.normal(size=x.shape))).astype(np.float32)
    forms = (Codes(outputs(), np.arange(1.0, 8)),)
    assert not has(written(forms, x).node, "scaled")
    found = written(forms, x, tolerance=1e-6)
    assert found.data.nbytes <= 64 * 4 + 64 * 64 // 2
    back = read_leaf(found.node, found.data.tobytes(), x.shape, x.dtype)
    assert 0 < np.linalg.norm(back - x) <= 1e-6 * np.linalg.norm(x)


def test_an_offset_and_multiples_keep_zeros_apart():
    rng = np.random.default_rng(0)
    x = (0.25 * rng.integers(0, 8, (64, 64)) - 0.75).astype(np.float32)
    x[:, ::3] = 0
    found = written((Codes(outputs(), np.arange(1.0, 8), offset=True),), x)
    assert found.node["form"] in ("scaled", "listed")
    assert found.data.nbytes <= 64 * 64 // 2 + 8 * 64


def test_kernels_keep_the_number_of_their_pattern_and_its_weights():
    rng = np.random.default_rng(0)
    library = np.zeros((4, 9), bool)
    for pattern, taps in zip(library, ([0, 1, 4], [1, 4, 5], [3, 4, 7], [4, 7, 8]), strict=True):
        pattern[taps] = True
    x = rng.normal(size=(3, 3, 16, 32)).astype(np.float32)
    x *= library[rng.integers(0, 4, (16, 32))].transpose(2, 0, 1).reshape(x.shape)
    found = written((Support(kernels()), Patterns(kernels(), library)), x)
    assert found.data.nbytes == math.ceil(4 * 9 / 8) + 16 * 32 * 2 // 8 + 16 * 32 * 3 * 4
    x[0, 0, 0, 0] = x[2, 2, 0, 0] = x[0, 2, 0, 0] = 1  # follows none: all its taps are kept
    assert has(written((Patterns(kernels(), library),), x).node, "patterns")


def test_rows_and_columns_that_are_left_are_a_leaf_of_their_own():
    rng = np.random.default_rng(0)
    kept = np.sort(rng.choice(32, 12, replace=False)), np.sort(rng.choice(48, 20, replace=False))
    dense = np.abs(rng.normal(size=(12, 20))) * np.repeat(rng.choice([-1, 1], (12, 5)), 4, axis=1)
    x = np.zeros((48, 32), np.float32)  # inputs, outputs
    x[np.ix_(kept[1], kept[0])] = dense.T
    form = Submatrix(None, *kept, (Signs(fragments(4, Layout("oi"))),))
    found = written((form,), x)
    assert has(found.node, "signs")
    assert found.data.nbytes == 32 // 8 + 48 // 8 + math.ceil(12 * 5 / 8) + 12 * 20 * 31 // 8
    x[np.setdiff1d(np.arange(48), kept[1])[0], 0] = 1  # a weight where none may be
    assert written((form,), x).node is None


def test_factors_stand_for_a_matrix_only_within_a_tolerance():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(64, 4)) @ rng.normal(size=(4, 48))).astype(np.float32)
    assert write_leaf((Factors(None, 4),), x).node["form"] == "factors"  # of sums, that of the dtype's rounding
    assert written((Factors(None, 4),), x).node is None
    assert written((Factors(None, 4),), x, tolerance=1e-6).data.nbytes == 4 * 4 * (64 + 48)
    assert written((Factors(None, 3),), x, tolerance=1e-6).node is None


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_offsets_and_scales_of_many_groups_are_found_to_rounding(dtype):
    rng = np.random.default_rng(0)
    scale, offset, code = rng.lognormal(size=(1, 64)), rng.normal(size=(1, 64)), rng.integers(0, 8, (200, 64))
    x = (scale * code + offset).astype(DTYPES[dtype])
    found = write_leaf((Codes(outputs(), np.arange(1.0, 8), offset=True),), x)
    assert found.node["form"] == "scaled"
    assert found.data.nbytes <= 200 * 64 * 3 // 8 + 2 * 64 * np.promote_types(x.dtype, np.float32).itemsize
    assert found.error <= 0.5 * float(jnp.finfo(x.dtype).eps)


def test_scales_of_outputs_are_those_of_the_outputs_that_are_left():
    rng = np.random.default_rng(0)
    kept = np.sort(rng.choice(32, 12, replace=False)), np.sort(rng.choice(48, 20, replace=False))
    x = np.zeros((48, 32), np.float32)  # inputs, outputs
    x[np.ix_(kept[1], kept[0])] = rng.lognormal(size=12).astype(np.float32) * rng.integers(-7, 8, (20, 12)).astype("f4")
    found = written((Submatrix(None, *kept), Codes(outputs(), np.arange(1.0, 8))), x)
    assert found.data.nbytes <= 32 // 8 + 48 // 8 + 12 * 4 + math.ceil(1.02 * 12 * 20 * math.log2(15) / 8)


def test_forms_of_several_sets_are_kept_one_within_the_other():
    rng = np.random.default_rng(0)
    x = np.where(rng.random((64, 64)) < 0.25, 0.5 * rng.integers(1, 8, (64, 64)), 0)
    x = (x * np.repeat(rng.choice([-1, 1], (16, 64)), 4, axis=0)).astype(np.float32)
    forms = in_order((Codes(whole(), np.arange(1.0, 8)),), (Signs(fragments(4)),), (Support(elements()),))
    found = written(forms, x)
    assert [form.place for form in forms] == [0, 3, 5]
    assert has(found.node, "support") and has(found.node, "signs") and has(found.node, "scaled")
    most = 64 * 64 / 8 + 64 * 16 / 8 + np.count_nonzero(x) * math.log2(7) * 1.02 / 8 + 4
    assert found.data.nbytes <= most + 8


def test_sides_have_values_of_their_own():
    rng = np.random.default_rng(0)
    below = np.repeat(rng.random((16, 64)) < 0.5, 4, axis=0)
    x = np.where(below, rng.choice([-4.0, -1, 0], (64, 64)), rng.choice([0, 0.5, 2.0, 3], (64, 64))).astype(np.float32)
    assert written((Sides(fragments(4)), Codes(whole())), x).data.nbytes <= 128 + 64 * 64 * 2 / 8 + 8 * 4


def test_pools_that_keep_equally_many_need_no_counts():
    x = np.zeros((64, 64), np.float32)
    x[::8] = 1 + np.arange(8 * 64).reshape(8, 64)
    assert written((Support(chunks(8)),), x).data.nbytes == 8 * 64 * 4 + 8 * 64 * 3 // 8
    x[0, :5] = 0  # fewer in some pools: a bit says which
    assert written((Support(chunks(8)),), x).data.nbytes == 507 * 4 + math.ceil(507 * 3 / 8) + 8 * 64 // 8


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_as_it_is(bad):
    x = np.zeros((8, 8), np.float32)
    x[0, 0] = bad
    found = write_leaf((Support(elements()),), x)
    assert found.node is None and np.array_equal(found.data, x, equal_nan=True)


def test_signs_of_zeros_are_lost_by_what_is_packed_alone():
    x = np.zeros((64, 64), np.float32)
    x[0], x[1] = -0.0, 1
    found = write_leaf((Support(elements()),), x)
    assert not np.signbit(read_leaf(found.node, found.data.tobytes(), x.shape, x.dtype)).any()
    assert np.signbit(write_leaf((), x).data).any()


@given(leaf=leaves(SHAPES), data=st.data())
def test_forms_that_do_not_hold_are_passed_over(leaf, data):
    view, x, _ = leaf
    if x.ndim == 1:
        view = elements()
    forms = [Support(view), Signs(view), Shared(view), Unlike(view), Sides(view), Codes(view, np.arange(1.0, 8))]
    chosen = data.draw(st.lists(st.sampled_from(forms), max_size=4))
    assert written(in_order(tuple(chosen)), x).data.nbytes <= x.nbytes
