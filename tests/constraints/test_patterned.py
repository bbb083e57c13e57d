"""Patterned: nearest for patterns and connectivity at once, patterns of pretrained kernels, and what kernels store."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import (
    CROSSES,
    CROSSES_AND_CORNERS,
    Chain,
    Layout,
    Patterned,
    Quantized,
    Sparse,
    Uniform,
    kernels,
    outputs,
)
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import arrays, energy, project

FREE = np.array([np.isin(range(9), kept) for kept in itertools.combinations(range(9), 4)])  # every 4 taps of 9
FLAT = Layout("oit")


@jax.jit  # plain calls compile their operations one by one
def footprint(constraint, x):
    return constraint.footprint(x)


@given(
    x=arrays(2, 2, 3),
    library=st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=3).map(np.array),
    density=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    balanced=st.booleans(),
)
def test_the_projection_is_nearest_of_all_ways_to_give_kernels_patterns(x, library, density, balanced):
    def allowed(choice):  # a pattern's number for each kernel, or None to drop it
        kept = [pattern is not None for pattern in choice]
        rows = [kept[:2], kept[2:]] if balanced else [kept]
        return all(sum(row) <= np.round(density * len(row)) for row in rows)

    def members():
        for choice in filter(allowed, itertools.product([None, *range(len(library))], repeat=4)):
            masks = [np.zeros(3, bool) if pattern is None else library[pattern] for pattern in choice]
            yield np.where(masks, x.reshape(4, 3), 0).reshape(x.shape)

    projected = np.asarray(project(Patterned(library, density=density, layout=FLAT, balanced=balanced), x))
    distances = {member.tobytes(): energy(x - member) for member in members()}
    assert distances.get((projected + 0.0).tobytes(), np.inf) <= min(distances.values()) * (1 + 1e-5)


CASES = {  # for a layout
    "patterns": lambda l: Patterned(entries=1, patterns=2, layout=l),
    "connectivity": lambda l: Patterned(entries=2, patterns=2, density=0.4, layout=l),
    "balanced": lambda l: Patterned(np.eye(3, dtype=int), density=0.6, layout=l, balanced=True),
    "then filters": lambda l: Chain(Patterned(entries=2, layout=l), Sparse(0.5, outputs(l))),
}


def cases():
    """All combinations, most of them slow: the quick run meets each constraint once."""
    shapes = [("hwio", (3, 1, 3, 5)), ("oihw", (5, 3, 1, 3))]
    kinds = list(itertools.product(shapes, ["float32", "bfloat16"]))
    for (row, name), kind in itertools.product(enumerate(CASES), kinds):
        yield pytest.param(name, *kind, marks=() if kinds[row] == kind else pytest.mark.slow)


@pytest.mark.parametrize("name, leaf, dtype", list(cases()))
@pytest.mark.slow  # beside the rows of the suite
def test_patterned_keeps_the_contract(name, leaf, dtype):
    axes, shape = leaf
    check_constraint(CASES[name](Layout(axes)), jax.random.normal(jax.random.key(1), shape).astype(dtype))


def test_the_published_patterns_are_crosses_less_an_arm_and_corners_that_hold_the_centre():
    cross = {1, 3, 4, 5, 7}
    crosses = {frozenset(cross - {arm}) for arm in cross - {4}}
    corners = {
        frozenset({4, corner, *beside}) for corner, beside in {0: (1, 3), 2: (1, 5), 6: (3, 7), 8: (5, 7)}.items()
    }
    assert {frozenset(np.flatnonzero(mask)) for mask in CROSSES} == crosses and len(CROSSES) == 4
    assert {frozenset(np.flatnonzero(mask)) for mask in CROSSES_AND_CORNERS} == crosses | corners
    assert len(CROSSES_AND_CORNERS) == 8


@pytest.mark.parametrize(
    "library, share",
    [(FREE, 0.867), (FREE[FREE[:, 4]], 0.829), (CROSSES_AND_CORNERS, 0.698), (CROSSES, 0.541), (CROSSES[:1], 4 / 9)],
    ids=["free", "centre", "eight", "four", "one"],
)
def test_patterns_hold_as_much_of_normal_kernels_as_simulations_say(library, share):
    x = np.random.default_rng(0).normal(size=(3, 3, 100, 200)).astype(np.float32)
    assert energy(project(Patterned(library), x)) / energy(x) == pytest.approx(share, abs=0.005)


@given(x=arrays(3, 3, 2, 4), density=st.sampled_from([0.25, 0.5, 0.75]))
def test_both_conditions_at_once_lose_no_more_than_one_after_the_other(x, density):
    patterns, connectivity = Patterned(CROSSES_AND_CORNERS), Sparse(density, kernels())
    joint = energy(x - project(Patterned(CROSSES_AND_CORNERS, density=density), x))
    for order in ((patterns, connectivity), (connectivity, patterns)):
        assert joint <= energy(x - project(Chain(*order), x)) * (1 + 1e-5)


def test_the_kernel_kept_is_the_largest_within_its_pattern_not_the_largest():
    spread, concentrated = np.full(9, 3.0), np.where(CROSSES[2], 4.0, 0.0)
    x = jnp.stack([spread, concentrated]).reshape(1, 2, 9)  # energies 81 and 64, of which patterns hold 36 and 64
    projected = project(Patterned(CROSSES, density=0.5, layout=FLAT), x)
    np.testing.assert_array_equal(projected, x.at[0, 0].set(0))


def test_one_convolution_in_two_layouts_has_one_projection():
    x = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    there = project(Patterned(CROSSES, density=0.3), x)
    here = project(Patterned(CROSSES, density=0.3, layout=Layout("oihw")), x.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(here, there.transpose(3, 2, 0, 1))


def test_balanced_filters_keep_equally_many_kernels_whatever_their_size():
    x = jax.random.normal(jax.random.key(0), (3, 3, 8, 4)) * jnp.array([1.0, 10.0, 100.0, 1000.0]).reshape(1, 1, 1, 4)
    free, balanced = (project(Patterned(CROSSES, density=0.25, balanced=b), x) for b in (False, True))
    assert np.any(np.asarray(free) != 0, (0, 1)).sum(0).tolist() == [0, 0, 0, 8]
    assert np.any(np.asarray(balanced) != 0, (0, 1)).sum(0).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("small", [1e-3, 1e-6, 1e-12])
def test_a_small_weight_beside_large_ones_counts_for_the_pattern(small):
    x = jnp.zeros((1, 1, 9)).at[0, 0, jnp.array([4, 1])].set(jnp.array([1.0, small]))
    library = np.stack([np.isin(range(9), taps) for taps in [(3, 4), (1, 4)]])
    assert Patterned(library, layout=FLAT).violation(x) == 0


@pytest.mark.parametrize("kept, dropped", [(1e-30, 1e-32), (1e30, 1e29), (5e37, 4e37)])
def test_kernels_whose_squares_vanish_or_overflow_are_shaped_and_ordered(kept, dropped):
    shape = jnp.array([1.0, 4.0, 1.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0])
    x = jnp.stack([shape * dropped / 4, shape * kept / 4])[None]
    projected = project(Patterned(CROSSES, density=0.5, layout=FLAT), x)
    np.testing.assert_array_equal(projected, jnp.where(CROSSES[2], x, 0).at[0, 0].set(0))


def test_one_program_serves_all_densities_and_libraries():
    x, traces = jax.random.normal(jax.random.key(0), (3, 3, 4, 4)), []
    sweep = [Patterned(library, density=density) for library in (CROSSES, ~CROSSES) for density in (0.25, 0.5)]

    @jax.jit
    def prune(constraint):
        traces.append(constraint)
        return constraint.project(x)

    loop = jnp.stack([prune(constraint) for constraint in sweep])
    assert len(traces) == 1
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *sweep)
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda c: c.project(x)))(together), loop)


def test_the_gradient_of_a_projection_is_its_mask():
    x = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    patterned = Patterned(CROSSES, density=0.5)
    gradient = jax.jit(jax.grad(lambda x: patterned.project(x).sum()))(x)
    np.testing.assert_array_equal(gradient, project(patterned, x) != 0)


def of_patterns(*drawn):
    """Kernels ``[1, kernels, taps]`` that are larger on the taps named, by the size of their weights."""
    return jnp.array([[0.1 * (tap + 1) + 10 * (tap in taps) for tap in range(9)] for taps in drawn])[None]


def test_fit_takes_the_patterns_of_most_kernels_in_order_and_does_not_count_kernels_of_zeros():
    a, b, c = (0, 1, 2, 3), (4, 5, 6, 7), (2, 4, 6, 8)
    x = jnp.concatenate([of_patterns(a, b, c, b, c, b), jnp.zeros((1, 9, 9))], axis=1)
    fitted = Patterned(patterns=2, layout=FLAT).fit(x)
    assert [tuple(np.flatnonzero(mask)) for mask in fitted.library] == [b, c]
    assert fitted.fit(of_patterns(a)) is fitted  # a library is not taken anew


def test_fit_takes_earlier_taps_first_of_patterns_as_frequent_and_of_weights_as_large():
    a, b, c = (0, 1, 2, 8), (0, 1, 3, 4), (4, 5, 6, 7)
    for order in itertools.permutations([a, b, c]):
        fitted = Patterned(patterns=2, layout=FLAT).fit(of_patterns(*order))
        assert [tuple(np.flatnonzero(mask)) for mask in fitted.library] == [a, b]
    assert np.flatnonzero(Patterned(layout=FLAT).fit(jnp.ones((1, 1, 9))).library).tolist() == [0, 1, 2, 3]


def test_fit_can_hold_the_centre_in_every_pattern():
    x = jax.random.normal(jax.random.key(0), (3, 3, 8, 8))
    fitted = Patterned(patterns=64, centre=True).fit(x)
    found = {tuple(np.flatnonzero(mask)) for mask in fitted.library if mask.any()}
    sizes = np.abs(np.asarray(x)).reshape(9, -1).T
    assert found == {tuple(sorted([4, *[t for t in np.argsort(-row) if t != 4][:3]])) for row in sizes}


@pytest.mark.parametrize(
    "axes, shape, entries",
    [("hwio", (5, 5, 3, 4), 6), ("hio", (7, 3, 4), 3), ("owhi", (4, 2, 3, 3), 2), ("t", (9,), 4)],
)
def test_kernels_of_any_size_keep_their_largest_weights_where_fit_takes_every_pattern(axes, shape, entries):
    x = jax.random.normal(jax.random.key(0), shape)
    layout = Layout(axes)
    fitted = Patterned(patterns=64, entries=entries, layout=layout).fit(x)
    sizes = np.abs(np.asarray(kernels(layout).split(x)[0]))
    largest = sizes >= np.sort(sizes, axis=1)[:, -entries, None]
    np.testing.assert_array_equal(np.asarray(kernels(layout).split(project(fitted, x))[0]) != 0, largest)


def test_where_fewer_patterns_occur_than_asked_for_empty_ones_fill_up_and_cost_nothing():
    x = of_patterns((0, 1, 2, 3), (4, 5, 6, 7), (4, 5, 6, 7), (0, 1, 2, 3))
    few, more = (Patterned(patterns=patterns, layout=FLAT).fit(x) for patterns in (2, 3))
    assert more.library.shape == (3, 9) and not more.library[2].any()
    np.testing.assert_array_equal(project(more, -x), project(few, -x))
    assert footprint(more, project(more, x)).bits == footprint(few, project(few, x)).bits
    assert Patterned(patterns=8, layout=FLAT).fit(x[:, :1]).library.shape == (1, 9)  # one kernel, one pattern


@pytest.mark.slow
def test_fit_can_be_compiled_and_mapped_over_leaves():
    leaves = jax.random.normal(jax.random.key(0), (3, 3, 3, 4, 4))
    mapped = jax.jit(jax.vmap(Patterned(patterns=4).fit))(leaves)
    np.testing.assert_array_equal(mapped.library, jnp.stack([Patterned(patterns=4).fit(x).library for x in leaves]))


def test_a_library_that_is_missing_or_not_to_be_found_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"Patterned has no library yet: .*fit"):
        Patterned().project(jnp.ones((3, 3, 1, 1)))
    with pytest.raises(ValueError, match=r"no pattern in a leaf of zeros: give a library"):
        Patterned().fit(jnp.zeros((3, 3, 1, 1)))


def test_retraining_neither_changes_patterns_nor_brings_back_what_is_zero():
    patterned = Patterned(CROSSES, density=0.5)
    x = project(patterned, jax.random.normal(jax.random.key(0), (3, 3, 4, 4)))
    place = tuple(np.argwhere(np.asarray(x))[0])
    x = x.at[place].set(0.0)  # a zero within a pattern
    for step in (0.1, 10.0):
        v = step * jax.random.normal(jax.random.key(1), x.shape)
        moved = x + patterned.tangent(x, v)
        np.testing.assert_array_equal(moved, jnp.where(x != 0, x + v, 0))
        assert patterned.violation(moved) == 0
    assert patterned.violation(x + v) > 1  # which a free step would not hold


@pytest.mark.slow
def test_a_kernel_kept_takes_35_bits_at_8_patterns_and_8_bit_weights_and_its_place():
    x = jax.random.normal(jax.random.key(0), (3, 3, 16, 16))
    patterned = Patterned(CROSSES_AND_CORNERS, density=0.25)
    x = project(patterned, x)
    found = footprint(patterned, x)
    assert (found.values, found.value_bits, found.group_density) == (64 * 4, 32, 0.25)
    assert found.index_bits == 64 * 3 + 256  # the number of the pattern; a bitmap is smaller than 64 places of 8 bits
    assert found.side_bits == 8 * 9
    quantized = footprint(Chain(patterned, Quantized(Uniform(8))), x)
    assert quantized.values * quantized.value_bits + quantized.index_bits == 64 * 35 + 256
    few = Patterned(CROSSES, density=2 / 256)
    assert footprint(few, project(few, x)).index_bits == 2 * (2 + 8)  # 4 patterns; places of 8 bits, 2 of them


@pytest.mark.parametrize("patterns, bits", [(1, 0), (2, 1), (3, 2), (8, 3), (9, 4), (64, 6), (65, 7)])
def test_a_pattern_is_numbered_in_as_many_bits_as_the_library_needs(patterns, bits):
    x = project(Patterned(FREE[:patterns], layout=FLAT), jnp.ones((2, 5, 9)))
    assert footprint(Patterned(FREE[:patterns], layout=FLAT), x).index_bits == 10 * bits + 10


def test_a_kernel_is_stored_whole_in_the_smallest_pattern_that_holds_it():
    library = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
    x = jnp.array([[[1.0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]])
    assert footprint(Patterned(library, layout=FLAT), x).values == 2 + 3 + 1


@pytest.mark.parametrize(
    "patterned, shape, message",
    [
        (Patterned(), (4, 4), r"needs the taps of a kernel, but a leaf of shape \(4, 4\)"),
        (Patterned(), (9,), r"needs the taps of a kernel, but a leaf of shape \(9,\)"),
        (Patterned(CROSSES), (5, 5, 2, 2), r"library of shape \(4, 9\) given .* expected \[patterns, 25\]"),
        (Patterned(CROSSES[0]), (3, 3, 2, 2), r"library of shape \(9,\) given .* expected \[patterns, 9\]"),
        (Patterned(CROSSES[:0]), (3, 3, 2, 2), r"library of shape \(0, 9\) given"),
        (Patterned(CROSSES * 0.5), (3, 3, 2, 2), r"library must hold booleans, or 0 and 1, found \[0. +0.5\]"),
        (Patterned(entries=10), (3, 3, 2, 2), r"1 to 9 entries .*, found patterns=8, entries=10"),
        (Patterned(entries=0), (3, 3, 2, 2), r"1 to 9 entries .*, found patterns=8, entries=0"),
        (Patterned(patterns=0), (3, 3, 2, 2), r"at least 1 pattern .*, found patterns=0, entries=4"),
        (Patterned(entries=2.5), (3, 3, 2, 2), r"1 to 9 entries .*, found patterns=8, entries=2.5"),
        (Patterned(centre=True), (2, 2, 2, 2), r"kernel of even size has no centre, found shape \(2, 2, 2, 2\)"),
        (Patterned(CROSSES, density=1.5), (3, 3, 2, 2), r"density must lie in \[0, 1\], found 1.5"),
    ],
)
def test_a_leaf_that_does_not_fit_is_an_error_that_says_what_was_found_and_expected(patterned, shape, message):
    with pytest.raises(ValueError, match=message):
        patterned.check(jnp.ones(shape))


def test_the_checks_accept_what_is_right():
    for library in (None, CROSSES, CROSSES.astype(float), jnp.asarray(CROSSES)):
        Patterned(library, centre=True).check(jnp.ones((3, 3, 2, 2)))


def test_a_constraint_prints_on_one_line_with_the_size_of_its_library():
    assert repr(Patterned(CROSSES, density=0.5)) == (
        "Patterned(library=<4 x 9>, density=0.5, layout=None, balanced=False)"
    )
    assert repr(Patterned(entries=3)).startswith("Patterned(library=None, patterns=8, entries=3, density=1.0")
