"""The Pareto front is what brute force says it is, and the hypervolume what counting cells says."""

import itertools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxcomp.sweeps._pareto import hypervolume, pareto_front

# few different values, so that ties and equal points are common
COSTS = st.sampled_from([-1.0, 0.0, -0.0, 1.0, 2.0, 3.0, np.inf, -np.inf, np.nan])


def clouds(objectives):
    return st.integers(0, 24).flatmap(lambda n: hnp.arrays(np.float64, (n, objectives), elements=COSTS))


def brute_force(points, signs):
    costs = points * signs

    def beats(a, b):
        return (a <= b).all() and (a < b).any()

    return [not np.isnan(p).any() and not any(beats(q, p) for q in costs) for p in costs]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@given(data=st.data())
def test_the_front_is_that_of_brute_force(objectives, data):
    points = data.draw(clouds(objectives))
    modes = data.draw(st.lists(st.sampled_from(["min", "max"]), min_size=objectives, max_size=objectives))
    signs = np.array([1.0 if mode == "min" else -1.0 for mode in modes])
    assert pareto_front(points, modes).tolist() == brute_force(points, signs)


@given(clouds(3), st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order_of_points(points, random):
    order = list(range(len(points)))
    random.shuffle(order)
    assert pareto_front(points[order]).tolist() == pareto_front(points)[order].tolist()


def test_equal_points_are_on_the_front_together_and_nan_never_is():
    points = [[1.0, 2.0], [np.nan, 0.0], [1.0, 2.0], [1.0, 3.0]]
    assert pareto_front(points).tolist() == [True, False, True, False]


@pytest.mark.parametrize("objectives", [1, 2, 3])
@given(data=st.data())
def test_the_hypervolume_counts_the_cells_that_a_point_dominates(objectives, data):
    points = data.draw(
        st.integers(0, 8).flatmap(lambda n: hnp.arrays(np.int64, (n, objectives), elements=st.integers(0, 5)))
    )
    cells = itertools.product(range(4), repeat=objectives)
    expected = sum(any((point <= cell).all() for point in points) for cell in map(np.array, cells))
    assert hypervolume(points.astype(float), [4.0] * objectives) == expected


def test_objectives_to_make_large_count_downwards_from_their_reference():
    assert hypervolume([[0.9, 100.0], [0.5, 50.0]], (0.0, 200.0), ("max", "min")) == pytest.approx(0.9 * 100 + 0.5 * 50)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_point_that_is_not_better_than_the_reference_adds_nothing(bad):
    assert hypervolume([[1.0, 1.0], [bad, 0.0], [0.0, 2.0]], (2.0, 2.0)) == 1.0


def test_two_objectives_of_a_large_cloud_are_sorted_and_not_compared_in_pairs():
    points = np.random.default_rng(0).normal(size=(200_000, 2))
    front = points[pareto_front(points)]
    assert (np.diff(front[np.argsort(front[:, 0]), 1]) < 0).all()


@pytest.mark.parametrize(
    ("points", "mode", "message"),
    [([1.0, 2.0], "min", r"expected \[n, objectives\]"), ([[1.0, 2.0]], ("min",), "one of them for each of 2")],
)
def test_misuse_is_named(points, mode, message):
    with pytest.raises(ValueError, match=message):
        pareto_front(points, mode)


def test_a_reference_of_another_length_is_named():
    with pytest.raises(ValueError, match="1 objectives, the points 2"):
        hypervolume([[1.0, 2.0]], [3.0])
