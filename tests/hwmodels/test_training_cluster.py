"""Hydraulis' regressions: the page's lengths, and steps counted by hand."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.hwmodels import Smooth
from jaxcomp.hwmodels._training_cluster import TrainingCluster

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference"
SAFE_GIB = {"7b": 6, "13b": 8, "32b": 10, "7b_A100": 6}


def pool(model: str) -> dict[tuple[int, int], dict[str, str]]:
    """Rows of a model by how its layers and its depth are cut."""
    path = REFERENCE / "hydraulis_strategy_pool.csv"
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    with open(path, newline="") as file:
        return {(int(row["tp"]), int(row["pp"])): row for row in csv.DictReader(file) if row["model"] == model}


@pytest.mark.parametrize(
    ("model", "cut", "replicas", "tokens"),
    [
        ("7b", (1, 4), 2, 10_971),
        ("7b", (2, 2), 2, 21_624),
        ("7b", (4, 1), 2, 40_160),
        ("7b", (4, 2), 2, 46_788),
        ("7b", (8, 1), 2, 81_879),
        ("32b", (4, 4), 4, 14_686),
        ("32b", (8, 2), 4, 25_961),
        ("32b", (16, 1), 4, 43_614),
    ],
)
def test_the_longest_sequences_are_the_published_ones(model, cut, replicas, tokens):
    cluster = TrainingCluster.from_row(pool(model)[cut], replicas, SAFE_GIB[model])
    assert int(cluster.longest()) == tokens
    assert tokens <= float(cluster.longest(Smooth())) + 1 and float(cluster.longest(Smooth())) <= tokens + 1.02
    left = cluster.memory_bytes - cluster.safe_bytes - cluster.gap_bytes - cluster.state_bytes
    assert cluster.activation_bytes(tokens) <= left < cluster.activation_bytes(tokens + 1)


def test_a_sequence_of_8192_tokens_takes_the_published_time():
    cluster = TrainingCluster.from_row(pool("7b")[8, 1])
    assert float(cluster.pack_s(jnp.array([8192.0]))) == pytest.approx(0.3783, abs=5e-5)


def test_attention_outgrows_the_rest_where_the_page_says():
    for cut, tokens in (((8, 1), 72_242), ((1, 4), 47_646)):
        cluster = TrainingCluster.from_row(pool("7b")[cut])
        assert cluster.linear_s / cluster.quadratic_s == pytest.approx(tokens, rel=2e-4)


def test_every_row_of_the_pool_takes_longer_for_more_tokens():
    count = 0
    for model in SAFE_GIB:
        for row in pool(model).values():
            times = [float(TrainingCluster.from_row(row).pack_s(jnp.array([x]))) for x in (512.0, 1024.0, 2048.0)]
            assert times == sorted(times) and times[0] < times[2]
            count += 1
    assert count == 50


def test_states_that_fill_the_memory_leave_no_room_for_tokens():
    assert int(TrainingCluster(1, 1, 0, 1e-5, 0, layers=60, hidden=6656).longest()) == 0


# t(s) = s ** 2 + 10 s + 100, with three stages.
SIMPLE = TrainingCluster(1, 3, 1.0, 10.0, 100.0)


def seconds(*lengths):
    return sum(x * x + 10 * x for x in lengths) + 100


def test_squares_are_summed_within_a_pack():
    assert float(SIMPLE.pack_s(jnp.array([2.0, 3.0, 0.0]))) == seconds(2, 3) == 163


def test_a_step_is_the_slowest_pack_once_for_each_and_for_the_fill_of_the_slowest_replica():
    lengths = jnp.array([2.0, 3.0, 5.0, 7.0])
    assignment = np.zeros((2, 3, 4))
    assignment[0, 0, [0, 1]] = assignment[0, 1, 2] = assignment[1, 2, 3] = 1
    first, second = max(seconds(2, 3), seconds(5)) * (2 + 3 - 1), seconds(7) * (1 + 3 - 1)
    assert float(SIMPLE.iteration_s(lengths, assignment)) == max(first, second)
    assert float(SIMPLE.iteration_s(lengths, assignment, Smooth())) == pytest.approx(max(first, second), rel=0.03)
    mixed = TrainingCluster(1, jnp.array([3, 8]), 1.0, 10.0, 100.0, sync_s=0.3)
    assert float(mixed.iteration_s(lengths, assignment)) == pytest.approx(max(first, seconds(7) * 8) + 0.3)


@given(st.permutations(range(6)), st.lists(st.integers(1, 50), min_size=6, max_size=6))
def test_order_and_padding_do_not_matter(order, lengths):
    assignment = np.zeros((2, 2, 6))
    for i in range(6):
        assignment[i % 2, i // 3, i] = 1
    lengths, order = np.array(lengths, np.float32), list(order)
    here = float(SIMPLE.iteration_s(lengths, assignment))
    assert float(SIMPLE.iteration_s(lengths[order], assignment[:, :, order])) == here
    padded = np.pad(assignment, ((0, 1), (0, 2), (0, 3)))
    assert float(SIMPLE.iteration_s(np.pad(lengths, (0, 3)), padded)) == here


def test_a_relaxed_assignment_has_the_derivatives_of_differences():
    lengths = jnp.array([2.0, 3.0, 5.0, 7.0])
    slopes = jax.jit(jax.value_and_grad(lambda shares: SIMPLE.iteration_s(lengths, shares, Smooth())))
    with jax.enable_x64(True):
        shares = np.random.default_rng(0).dirichlet(np.ones(6), 4).T.reshape(2, 3, 4)
        toward = np.random.default_rng(1).normal(size=shares.shape)
        (up, _), (down, _), (_, slope) = (slopes(shares + h * toward) for h in (1e-5, -1e-5, 0.0))
        assert float(jnp.sum(slope * toward)) == pytest.approx(float(up - down) / 2e-5, rel=1e-3)
        assert np.isfinite(slopes(np.zeros((2, 3, 4)))[1]).all()


def test_strategies_and_batches_go_through_one_program():
    cuts = [(1, 4), (4, 1), (8, 1)]
    rows = [TrainingCluster.from_row(pool("7b")[cut], 2) for cut in cuts]
    stacked = jax.tree.map(lambda *x: jnp.array(x, float), *rows)
    np.testing.assert_allclose(stacked.longest(), [row.longest() for row in rows], atol=1)
    lengths = jnp.array([[100.0, 900.0], [4000.0, 0.0]])
    together = jax.jit(jax.vmap(jax.vmap(TrainingCluster.pack_s, (None, 0)), (0, None)))(stacked, lengths)
    np.testing.assert_allclose(together, [[row.pack_s(x) for x in lengths] for row in rows], rtol=1e-5)
