"""Deep gradient compression, run short: what its schemes are, what it counts, and what masking and momentum do."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import _data
from experiments import deep_gradient_compression as dgc
from experiments.__main__ import main

SIZE = 784 * 20 + 20 + 20 * 10 + 10


def task(**settings):
    return dgc._Task(dgc.Config(**{"steps": 12, "warm_up": 8, "hidden": (20,), **settings}), _data.load("digits"))


@pytest.mark.slow
def test_the_dense_scheme_is_momentum_descent_on_all_the_workers_images():
    ours = task()
    found = ours.run(dgc.SCHEMES["dense"], 1.0, 0.1, seed=3)
    images, labels = ours.train
    order = dgc.jc.shuffled(ours.train, 128, 12, 3).order
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, 12), momentum=0.9)

    @jax.jit
    def train(params, order):
        def step(carry, rows):
            gradient = jax.grad(ours._loss)(carry[0], images[rows], labels[rows])
            updates, state = tx.update(gradient, carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), order)[0][0]

    params = train(ours.model.init(jax.random.key(3), images[:1])["params"], order)
    for x, y in zip(*map(jax.tree.leaves, (found.params, params)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert ours.measured(found)["ratio"] == 1


@pytest.mark.slow
def test_messages_are_counted_with_their_indices_and_their_warm_up():
    """A tenth of the kernels, and a quarter at first; a bit of a map for every entry, or 8 bits of address if less."""
    ours = task()
    found = ours.run(dgc.SCHEMES["DGC, warm-up"], 0.1, 0.1, seed=0)
    early = 32 * (3920 + 50 + 30) + 784 * 20 + 200
    late = 32 * (1568 + 20 + 30) + 784 * 20 + 20 * 8
    np.testing.assert_allclose(found.bits, [early] * 2 + [late] * 10)
    assert ours.measured(found)["ratio"] == pytest.approx(32 * SIZE * 12 / (2 * early + 10 * late))
    assert np.all(found.moved[2:] <= 4 * (1568 + 20 + 30) / SIZE) and found.moved[-1] > (1568 + 20) / SIZE


def test_gradient_dropping_has_its_momentum_at_the_server():
    """With everything sent it is momentum descent again; the workers' own states would then be idle."""
    config, params = dgc.Config(), {"fc1": {"kernel": jnp.ones((4, 2))}}
    gradient = jax.tree.map(jnp.ones_like, params)
    exchange, server = dgc._optimizers(dgc.SCHEMES["gradient dropping"], params, 1.0, 0.1, config)
    states = jax.jit(jax.vmap(lambda _: exchange.init(params)))(jnp.arange(1))
    state, moved = server.init(params), []
    each = jax.jit(jax.vmap(exchange.update, in_axes=(None, 0), axis_name="workers", out_axes=(None, 0)))
    for _ in range(2):
        mean, states = each(gradient, states)
        updates, state = server.update(mean, state)
        moved.append(float(updates["fc1"]["kernel"][0, 0]))
    np.testing.assert_allclose(moved, [-0.1, -0.19], rtol=1e-4)


@pytest.mark.parametrize(
    ("points", "claim", "verdict"),
    [
        ((1.0, 1.1, 1.2), "better", "reproduced"),
        ((-1.0, 1.1, 0.2), "better", "not reproduced, no difference"),
        ((-1.0, -1.1, -1.2), "better", "not reproduced, it is worse"),
        ((-1.0, -1.1, -1.2), "no worse", "not reproduced, it is worse"),
        ((-1.0, 1.1, -0.2), "no worse", "reproduced"),
        ((1.0,), "better", "one seed: no verdict"),
    ],
)
def test_a_claim_is_reproduced_only_beyond_two_standard_errors(points, claim, verdict):
    assert dgc.report.verdict(np.array(points), claim).strip(")").endswith(verdict)


@pytest.mark.slow
def test_a_run_writes_its_table_its_plot_and_every_scheme(tmp_path, capsys):
    settings = ["steps=4", "warm_up=4", "rates=0.1", "hidden=20", "densities=0.1,0.01"]
    command = ["run", "deep-gradient-compression", "--quick", "--data", "digits", "--results", str(tmp_path)]
    assert main([*command, "--set", *settings]) == 0
    (result,) = tmp_path.glob("deep-gradient-compression/*/result.json")
    rows = json.loads(result.read_text())["metrics"]["rows"]
    assert len(rows) == 2 + 2 * (len(dgc.SCHEMES) - 2) and {row["scheme"] for row in rows} == set(dgc.SCHEMES)
    assert (result.parent / "accuracy.png").is_file()
    assert "DGC, warm-up" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_at_a_thousandth_dgc_learns_faster_than_gradient_dropping():
    """The paper's order, in training loss, with 8 workers and 40 epochs of the digits."""
    ours = task(steps=360, hidden=(32,), workers=8, batch_size=16)
    loss = {
        name: np.mean([ours.run(dgc.SCHEMES[name], 0.001, 0.05, seed).loss[-36:].mean() for seed in range(3)])
        for name in ("gradient dropping", "DGC")
    }
    assert loss["DGC"] < 0.95 * loss["gradient dropping"]
