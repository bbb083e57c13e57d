"""Compacted: a set of what pruning has left, nearest where the set is, and the crossbars that it takes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcomp as jc
from jaxcomp.constraints import (
    Chain,
    Compacted,
    FixedMask,
    Layout,
    Polarized,
    Quantized,
    Sparse,
    Ternary,
    Tied,
    Uniform,
    crossbars,
    diagonals,
    elements,
    fragments,
    inputs,
    outputs,
)
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import MATRIX, arrays, energy, least_error, project

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SHAPES = {"io": (7, 5), "hwio": (3, 1, 3, 5), "oihw": (5, 3, 1, 3), "ioo": (7, 3, 2)}
INNER = {  # views see the kept weights as outputs by inputs
    "polarized": Polarized(fragments(3, MATRIX)),
    "sparse": Sparse(0.5, outputs(MATRIX)),
    "ternary": Quantized(Ternary(), outputs(MATRIX)),
    "circulant": Tied(diagonals(2, MATRIX)),
}


def without(x, rows, columns):
    return np.delete(np.delete(x, rows, axis=0), columns, axis=1)


def pruned(axes, seed=1):
    """Weights without the second output and the first and third inputs."""
    layout = Layout(axes)
    x = jax.random.normal(jax.random.key(seed), SHAPES[axes])
    matrix = layout.to_matrix(x).at[1].set(0.0).at[:, np.array([0, 2])].set(0.0)
    return layout.from_matrix(matrix, x.shape)


@pytest.mark.parametrize("name", INNER)
@given(x=arrays(4, 5, zeros=False), row=st.integers(0, 3), columns=st.sampled_from([[], [1], [0, 3]]))
def test_compacted_projection_is_nearest_of_the_inner_set_on_what_is_left(name, x, row, columns):
    mask = np.ones_like(x)
    mask[row], mask[:, columns] = 0, 0
    compacted = Compacted(INNER[name], layout=MATRIX).fit(jnp.asarray(x * mask))
    assert compacted.exact(x.shape)
    projected = np.asarray(project(compacted, x))
    np.testing.assert_array_equal(projected[mask == 0], 0)
    removed = energy(x[mask == 0])
    least = removed + least_error(INNER[name], without(x, [row], columns))
    np.testing.assert_allclose(energy(x - projected), least, rtol=1e-4, atol=1e-5 * energy(x))


@pytest.mark.parametrize("axes", SHAPES)
def test_what_is_left_is_cut_into_fragments_along_the_inputs_of_an_output(axes):
    x = pruned(axes)
    compacted = Compacted(Polarized(fragments(4)), layout=Layout(axes)).fit(x)
    kept = without(np.asarray(Layout(axes).to_matrix(project(compacted, x))), [1], [0, 2])
    np.testing.assert_array_equal(kept, compacted.compact(project(compacted, x)))
    for row in kept:
        for start in range(0, row.size, 4):
            fragment = row[start : start + 4]
            assert (fragment >= 0).all() or (fragment <= 0).all()
    wanted = project(Polarized(fragments(4, MATRIX)), without(np.asarray(Layout(axes).to_matrix(x)), [1], [0, 2]))
    np.testing.assert_array_equal(kept, wanted)


@pytest.mark.slow
def test_after_structured_pruning_fragments_lie_on_the_compacted_matrix_and_not_on_the_whole():
    x = jax.random.normal(jax.random.key(0), (12, 8))  # flax: 12 inputs, 8 outputs
    x = x.at[np.array([0, 2, 6, 9, 10, 11])].multiply(0.01)  # leaves 1, 3, 4 and 5, 7, 8
    params = {"w": jc.project({"w": Chain(Sparse(0.5, outputs()), Sparse(0.5, inputs()))}, {"w": x})["w"]}
    spec = jc.assign(params, {"w": Compacted(Polarized(fragments(3)))})
    assert (spec["w"].outputs.size, spec["w"].inputs.size) == (4, 6)
    found = np.asarray(jc.project(spec, params)["w"])
    kept = np.flatnonzero(np.asarray(params["w"]).any(1)), np.flatnonzero(np.asarray(params["w"]).any(0))
    tiles = found[np.ix_(*kept)].T.reshape(4, 2, 3)  # outputs, fragments of three inputs that are left
    assert ((tiles >= 0).all(2) | (tiles <= 0).all(2)).all()
    across = Polarized(fragments(3)).violation(jnp.asarray(found))
    assert across > 0.1  # runs of three in the whole matrix, as 3, 4, 5, hold two signs
    np.testing.assert_array_equal(found[np.delete(np.arange(12), kept[0])], 0)


def cases():
    for name, dtype, axes in itertools.product(["polarized", "sparse", "ternary"], DTYPES, SHAPES):
        quick = (name, dtype, axes) in [("polarized", "float32", "hwio"), ("ternary", "bfloat16", "io")]
        yield pytest.param(name, axes, dtype, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("name, axes, dtype", list(cases()))
@pytest.mark.slow
def test_compacted_keeps_the_contract(name, axes, dtype):
    x = jax.random.normal(jax.random.key(2), SHAPES[axes]).astype(DTYPES[dtype])
    compacted = Compacted(INNER[name], layout=Layout(axes))
    check_constraint(compacted.fit(pruned(axes)), x)
    check_constraint(compacted, pruned(axes).astype(DTYPES[dtype]))


def test_a_bad_weight_that_was_taken_out_still_makes_the_projection_nan():
    compacted = Compacted(Sparse(0.5)).fit(pruned("io"))
    removed = pruned("io").at[0, 0].set(jnp.nan)
    assert jnp.isnan(compacted.project(removed)).all()


def test_tangents_move_only_what_is_kept():
    x = pruned("io")
    compacted = Compacted(FixedMask()).fit(x)
    np.testing.assert_array_equal(compacted.tangent(x, jnp.ones_like(x)), x != 0)


def test_views_without_a_layout_see_outputs_by_inputs_wherever_they_stand():
    x = pruned("io")
    chain = Chain(Polarized(fragments(3)), Sparse(0.5, outputs()))
    laid = Chain(Polarized(fragments(3, MATRIX)), Sparse(0.5, outputs(MATRIX)))
    found, wanted = Compacted(chain).fit(x), Compacted(laid).fit(x)
    np.testing.assert_array_equal(project(found, x), project(wanted, x))
    assert found.exact(x.shape)


def test_it_is_exact_only_where_the_inner_set_is():
    x = pruned("io")
    assert not Compacted(Quantized(Uniform(4))).fit(x).exact(x.shape)
    chain = Chain(Sparse(0.5, elements()), Quantized(Ternary(), outputs()))  # one scale where one output is left
    assert not Compacted(chain).exact(x.shape)
    assert Compacted(chain).fit(x.at[:, 1:].set(0.0)).exact(x.shape)


def test_fitting_takes_what_is_left_and_fits_the_inner_set_to_it():
    x = jnp.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    fitted = Compacted(FixedMask(), layout=MATRIX).fit(x)
    assert (fitted.outputs.tolist(), fitted.inputs.tolist()) == ([0, 2], [0, 1])
    assert fitted.inner.mask.tolist() == [[False, True], [True, False]]
    again = fitted.fit(jnp.ones((3, 3)))
    assert again.outputs is fitted.outputs and again.inner.mask is fitted.inner.mask


def test_what_is_stored_is_the_inner_footprint_and_which_rows_and_columns_are_kept():
    x = jnp.zeros((16, 9)).at[np.array([3, 5])].set(-1.0)  # 2 outputs of 16, all of 9 inputs
    compacted = Compacted(Polarized(fragments(4)), layout=MATRIX).fit(x)
    found = jax.jit(lambda c, x: c.footprint(x))(compacted, x)
    assert (found.size, found.nonzeros, found.values, found.value_bits) == (144, 18, 18, 31)
    assert (found.side_bits, found.index_bits) == (2 * 3, 2 * 4 + 9)  # two addresses of 4 bits, a bit an input
    assert (found.row_density, found.column_density) == (2 / 16, 1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Compacted(Sparse(0.5)).project(jnp.ones((2, 2))), r"does not know yet what is kept: .*fit\(x\)"),
        (lambda: Compacted(Sparse(0.5)).fit(jnp.zeros((2, 2))), r"no non-zero weight in a leaf of shape \(2, 2\)"),
        (lambda: Compacted(Sparse(2.0)).check(jnp.ones((2, 2))), r"density must lie in \[0, 1\], found 2"),
        (
            lambda: Compacted(Polarized(fragments(3))).fit(jnp.ones((4, 4)).at[:2].set(0.0)),
            r"fragments\(3\) of oi needs 3 inputs .*\(4, 2\).* has 2",
        ),
        (
            lambda: Compacted(Sparse(0.5), outputs=jnp.array([0, 4])).check(jnp.ones((4, 4))),
            r"outputs must be different numbers from 0 to 3, found \[0 4\]",
        ),
        (lambda: Compacted(Sparse(0.5)).check(jnp.ones((1,) * 6)), r"no default layout for rank 6"),
        (lambda: crossbars(jnp.ones((2, 2)), 0, 4), r"at least one row and one column, found 0 by 4"),
    ],
)
def test_misuse_is_an_error_that_says_what_was_found_and_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def kept(shape, outputs_, inputs_, seed=0):
    """A flax leaf pruned to so many outputs and inputs, by their norms."""
    x = jax.random.normal(jax.random.key(seed), shape)
    chain = Chain(Sparse(outputs_ / shape[1], outputs()), Sparse(inputs_ / shape[0], inputs()))
    return project(chain, x)


@pytest.mark.parametrize("outputs_, inputs_", [(32, 64), (64, 32), (32, 32), (96, 160)])
def test_pruning_by_whole_arrays_saves_crossbars_at_the_pruning_rate(outputs_, inputs_):
    shape, count = (192, 128), jax.jit(crossbars, static_argnums=(1, 2))  # 6 by 4 arrays of 32 by 32
    x = kept(shape, outputs_, inputs_)
    rate = x.size / (outputs_ * inputs_)
    assert int(count(jnp.ones(shape), 32, 32)) == 24
    np.testing.assert_allclose(1 - int(count(x, 32, 32)) / 24, 1 - 1 / rate, rtol=1e-6)


@pytest.mark.parametrize("outputs_, inputs_, taken", [(33, 64, 4), (64, 33, 4), (20, 20, 1), (97, 161, 24)])
def test_pruning_that_leaves_arrays_half_empty_saves_fewer(outputs_, inputs_, taken):
    x = kept((192, 128), outputs_, inputs_)
    assert int(crossbars(x, 32, 32)) == taken > 24 * outputs_ * inputs_ / x.size


def test_filters_are_columns_of_a_crossbar_and_weight_positions_its_rows():
    filters = jnp.ones((256, 128)).at[:, 64:].set(0.0)  # half of the outputs pruned
    positions = jnp.ones((256, 128)).at[128:].set(0.0)
    assert int(crossbars(filters, 256, 64)) == int(crossbars(positions, 128, 128)) == 1
    assert int(crossbars(filters, 128, 128)) == int(crossbars(positions, 256, 64)) == 2
    assert int(crossbars(jnp.ones((5, 5, 20, 50)), 128, 64)) == 4 * 1  # 500 inputs, 50 filters
    assert int(crossbars(jnp.ones((50, 20, 5, 5)), 128, 64, Layout("oihw"))) == 4 * 1


@pytest.mark.slow
def test_scattered_zeros_free_nothing_and_only_compaction_does():
    x = project(Sparse(0.5), jax.random.normal(jax.random.key(0), (64, 64)))
    assert int(crossbars(x, 16, 16)) == 16
    half = jnp.ones((64, 64)).at[::2].set(0.0)
    assert (int(crossbars(half, 16, 16)), int(crossbars(half, 16, 16, compact=False))) == (8, 16)


@pytest.mark.slow
def test_published_reduction_of_forms_is_pruning_times_cells_times_arrays():
    """LeNet-5: 185.44 = 23.18 by pruning, 4 from 32 to 8 bits in cells of 2, 2 by polarisation, where sizes align."""
    side, tiles, left = 4, (19, 61), (5, 10)  # 1159 arrays of which 50 are left: 23.18
    before = jnp.ones((tiles[0] * side, tiles[1] * side))
    after = kept(before.shape, left[1] * side, left[0] * side)
    counts = [int(crossbars(x, side, side)) for x in (before, after)]
    assert counts == [1159, 50]
    cells_per_weight, arrays_per_sign = (32 // 2, 8 // 2), (2, 1)
    totals = [n * cells * d for n, cells, d in zip(counts, cells_per_weight, arrays_per_sign, strict=True)]
    np.testing.assert_allclose(totals[0] / totals[1], 185.44, rtol=1e-12)
    np.testing.assert_allclose(23.18 * 4 * 2, 185.44, rtol=1e-12)
    # Counting a weight's cells as columns of the array comes to the same where whole weights fill it.
    assert int(crossbars(after, side, 2 * side // cells_per_weight[1])) == 2 * counts[1]
