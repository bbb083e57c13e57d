"""HAQ's parts on small networks: bits as data, the wall, the agent; and a short run."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _data, haq
from experiments import _haq_network as network
from experiments.__main__ import main
from experiments._haq_agent import Agent, to_bits, walled
from experiments._haq_study import MOST, Numbers, Study

NUMBERS = Numbers(**{name: getattr(haq.Config.quick(), name) for name in Numbers._fields})._replace(steps=3)
LAYERS = network.layers(28, 1, 10)


@pytest.fixture(scope="module")
def study():
    return Study(_data.load("digits"), NUMBERS, seed=0)


@pytest.mark.slow
def test_the_network_does_the_products_that_its_workload_says():
    params = network.init(LAYERS, jax.random.key(0))
    images = jnp.zeros((2, 28, 28, 1))
    seen = jax.eval_shape(lambda p, x: network._run(LAYERS, p, x)[1], params, images)
    sides = [x.shape[1] for x in seen]
    assert sides == [layer.side for layer in LAYERS]
    weights = [params[layer.name]["kernel"].size for layer in LAYERS]
    assert [product.weights for product in network.workload(LAYERS, 16)] == weights


def test_shifted_slices_are_a_convolution():
    for layer in LAYERS[:3]:
        x = jax.random.normal(jax.random.key(1), (2, layer.side, layer.side, layer.inputs))
        kernel = jax.random.normal(jax.random.key(2), layer.shape)
        pad = [(1, 1)] * 2 if layer.kernel == 3 else [(0, 0)] * 2
        layout, groups = ("NHWC", "HWIO", "NHWC"), layer.inputs if layer.depthwise else 1
        expected = jax.lax.conv_general_dilated(
            x, kernel, (layer.stride,) * 2, pad, dimension_numbers=layout, feature_group_count=groups
        )
        np.testing.assert_allclose(network._convolved(x, kernel, layer), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [2.0, 4.0, 8.0])
def test_values_have_as_many_levels_as_their_bits_allow(bits):
    x = jnp.linspace(-1, 1, 5001)
    assert len(np.unique(np.round(network._signed(x, 0.9, bits), 6))) == 2**bits - 1
    assert len(np.unique(np.round(network._unsigned(jnp.abs(x), 0.9, bits), 6))) == 2**bits
    assert float(jax.grad(lambda c: network._unsigned(jnp.float32(2.0), c, bits))(0.9)) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_many_bits_change_nothing_and_few_change_much(study):
    images = study.data.validation.image[:50]
    logits = jax.jit(functools.partial(network.logits, LAYERS))
    plain = logits(study.params, images)

    def off(bits):
        widths = jnp.full(len(LAYERS), bits)
        quantized = study._programs.calibrate(study.params, study._calibration, widths, widths)
        return float(jnp.mean(jnp.abs(logits(study.params, images, quantized) - plain)))

    assert off(16.0) < 0.01 * off(2.0)


def test_actions_become_bits_with_equal_shares():
    actions = np.linspace(0, 1, 70_001)[1:-1]
    counts = np.bincount(to_bits(actions, 2, 8))[2:]
    assert len(counts) == 7 and np.ptp(counts) <= 2


def test_the_wall_takes_the_last_layers_bits_first_and_stops_at_the_first_policy_within_budget():
    costs = np.add.outer(np.arange(2, 9), np.arange(2, 9))[None].repeat(3, 0).astype(float)
    bits, fixed = np.full((3, 2), 8), np.array([[True, True], [False, False], [False, False]])
    assert walled(bits, fixed, costs, 48, 2).tolist() == [[8, 8]] * 3
    assert walled(bits, fixed, costs, 45, 2).tolist() == [[8, 8], [8, 7], [7, 7]]
    assert walled(bits, fixed, costs, 43, 2).tolist() == [[8, 8], [7, 7], [7, 6]]
    with pytest.raises(ValueError, match="budget 20 cannot be met: the fewest bits cost 24"):
        walled(bits, fixed, costs, 20, 2)


@pytest.mark.slow
def test_the_agent_learns_which_action_is_rewarded():
    agent = Agent(np.eye(2), seed=0, warm_up=20)
    for _ in range(80):
        actions = agent.actions()
        assert ((actions >= 0) & (actions <= 1)).all()
        agent.learn(actions, float(actions[0] - actions[1]))
    late = np.mean([agent.actions() for _ in range(50)], axis=0)
    assert late[0] > late[1] + 0.2


@pytest.mark.slow
def test_policies_keep_the_budget_and_the_ends_at_eight_bits(study):
    budget = study.cost(study.uniform(4))
    for policy in (
        study.allocated(budget, "exact"),
        study.allocated(budget, "gradient"),
        study.searched(budget, 3, True),
    ):
        assert study.cost(policy) <= budget * (1 + 1e-6)
        assert (policy[[0, -1]] == MOST).all() and policy.min() >= 2


@pytest.mark.slow
def test_a_run_writes_its_table_and_plot(tmp_path, capsys):
    settings = ["steps=3", "queries=3", "warm_up=2"]  # as many steps as above: compiled already
    assert main(["run", "haq", "--data", "digits", "--quick", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.glob("haq/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    for outcomes in metrics["found"].values():
        assert list(outcomes) == list(haq._METHODS)
        limit = outcomes["uniform"][0]["share"]
        assert all(each[0]["share"] <= limit * (1 + 1e-6) for each in outcomes.values())
    assert (result.parent / "accuracy.png").exists() and "ahead of uniform" in capsys.readouterr().out
