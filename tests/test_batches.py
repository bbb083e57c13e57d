"""Batches come in the stated order, start over, and may be arrays or indices into arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc
from jaxcomp._batches import batch_at, num_batches

DATA = {"x": np.arange(20.0).reshape(10, 2), "y": np.arange(10)}


def test_an_epoch_draws_every_example_at_most_once():
    epochs = jc.shuffled(DATA, batch_size=3, num_batches=9).order.reshape(3, 9)
    assert all(len(set(epoch.tolist())) == 9 for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_the_seed_sets_the_order():
    draw = [jc.shuffled(DATA, batch_size=2, num_batches=5, seed=seed).order for seed in (1, 1, 2)]
    assert jnp.array_equal(draw[0], draw[1]) and not jnp.array_equal(draw[0], draw[2])


def test_rows_of_all_arrays_stay_together():
    batch = batch_at(jc.shuffled(DATA, batch_size=4, num_batches=2), 1)
    np.testing.assert_array_equal(batch["x"][:, 0], 2 * batch["y"])


def test_indices_and_arrays_give_the_same_batches():
    batches = jc.shuffled(DATA, batch_size=4, num_batches=3)
    arrays = jax.tree.map(lambda leaf: leaf[batches.order], batches.data)
    for i in range(7):  # and both start over after the third
        for ours, theirs in zip(*map(jax.tree.leaves, (batch_at(batches, i), batch_at(arrays, i))), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(ours, batches.data["x" if ours.ndim == 2 else "y"][batches.order[i % 3]])


def test_batches_are_a_pytree_whose_data_is_no_constant():
    batches = jc.shuffled(DATA, batch_size=4, num_batches=3)
    first = jax.jit(lambda b: batch_at(b, 0)["y"])
    assert jnp.array_equal(first(batches), batches.order[0])
    assert len(jax.make_jaxpr(lambda b: batch_at(b, 0))(batches).consts) == 0


def test_random_keys_ride_along():
    keys = jax.random.split(jax.random.key(0), 3)
    assert num_batches({"key": keys, "x": jnp.ones((3, 2))}) == 3
    assert batch_at({"key": keys}, 4)["key"] == keys[1]


@pytest.mark.parametrize(
    ("data", "batch_size", "count", "message"),
    [
        (DATA, 0, 1, "batch_size must lie between 1 and the 10 examples, found 0"),
        (DATA, 11, 1, "batch_size must lie between 1 and the 10 examples, found 11"),
        (DATA, 2, 0, "num_batches must be at least 1, found 0"),
        ({"x": np.ones((3, 1)), "y": np.ones(4)}, 2, 1, r"one leading length; found leading lengths \[3, 4\]"),
        ({"x": np.ones((3, 1)), "y": np.float32(1)}, 2, 1, r"one leading length; found leading lengths \[0, 3\]"),
        ({}, 2, 1, r"one leading length; found leading lengths \[\]"),
    ],
)
def test_data_that_cannot_be_batched_is_an_error(data, batch_size, count, message):
    with pytest.raises(ValueError, match=message):
        jc.shuffled(data, batch_size=batch_size, num_batches=count)


@pytest.mark.parametrize("bad", [{}, 3.0, {"x": jnp.ones((2, 1)), "y": jnp.ones(3)}, jnp.ones((0, 4)), lambda r: r])
def test_batches_without_one_leading_axis_are_an_error(bad):
    with pytest.raises(ValueError, match="batches must be a pytree of arrays with one leading axis"):
        num_batches(bad)
