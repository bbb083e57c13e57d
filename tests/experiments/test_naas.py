"""The accelerator search: what vectors decode to, that designs stay in the envelope, and that searches find more."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import naas
from experiments.__main__ import main
from experiments._naas_evolution import Normal
from experiments._naas_space import IMPORTANCE, INDEX, PAIRS, SIZING, Envelope, Space, alexnet, sizes
from jaxcomp.hwmodels import Exact

ENCODINGS = (SIZING, IMPORTANCE, INDEX)
LAYERS = alexnet().stacked


def test_importance_decides_by_rank_alone():
    space = Space(Envelope(), IMPORTANCE)
    x = jax.random.normal(jax.random.key(0), (space.hardware_size,))
    ranked = x[3:]
    one, other = space.hardware(x), space.hardware(x.at[3:].set(jnp.exp(3 * ranked) + 5))
    assert one.loops.tolist() == other.loops.tolist() == (1 + np.argsort(-np.asarray(ranked))[:2]).tolist()


def test_an_index_reaches_every_pair_and_every_order():
    assert len(PAIRS) == 30 and len({tuple(pair) for pair in PAIRS.tolist()}) == 30
    space = Space(Envelope(), INDEX)
    grid = jnp.linspace(-9, 9, 4001)[:, None]
    pairs = jax.vmap(space._pair)(grid)
    assert len({tuple(pair) for pair in np.asarray(pairs).tolist()}) == 30
    orders = jax.vmap(space._order)(jnp.broadcast_to(grid, (4001, 3)))[:, 0]
    assert len({tuple(order) for order in np.asarray(orders).tolist()}) > 700


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_design_is_within_the_envelope_and_every_mapping_covers_its_layer(encoding):
    envelope = Envelope()
    space = Space(envelope, encoding)
    hardware_key, mapping_key = jax.random.split(jax.random.key(1))
    drawn = 2 * jax.random.normal(hardware_key, (100, space.hardware_size))
    hardware = jax.vmap(space.hardware)(drawn)
    units = np.asarray(jnp.prod(hardware.sides, -1))
    assert (units >= 4).all() and (units <= envelope.units).all() and (np.asarray(hardware.sides) % 2 == 0).all()
    assert (np.asarray(hardware.shared_kib) > 0).all() and (np.asarray(hardware.local_kib) > 0).all()
    kib = units * np.asarray(hardware.local_kib) + np.asarray(hardware.shared_kib)
    np.testing.assert_allclose(kib, envelope.kib, rtol=1e-6)

    layer = alexnet().products[1]
    layer = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), layer)
    tiles = 2 * jax.random.normal(mapping_key, (100, space.mapping_size))
    mappings = jax.vmap(space.mapping, (0, 0, None))(tiles, hardware, layer)
    inside = np.prod(np.asarray(mappings.temporal), -2) * np.prod(np.asarray(mappings.spatial), -2)
    assert (inside >= 1).all() and (inside == np.round(inside)).all()
    assert (np.prod(np.asarray(mappings.spatial), (-1, -2)) <= units).all()
    steps = np.asarray(jax.vmap(lambda m: m.steps(layer))(mappings))
    assert (np.prod(steps, -2) * np.prod(np.asarray(mappings.spatial), -2) >= np.asarray(sizes(layer))).all()


def test_real_and_whole_tiles_are_near_each_other_where_there_is_nothing_to_round():
    space = Space(Envelope(), SIZING)
    layer = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), alexnet().products[2])
    hardware = space.hardware(jnp.array([9.0, 0.0]))
    x = jnp.full(space.mapping_size, -20.0)  # tiles of one
    whole, real = (space.mapping(x, hardware, layer, rounded) for rounded in (True, False))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(real), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert space.cost(whole, layer, Exact()).cycles > 0


def test_a_normal_moves_to_the_least_of_a_bowl():
    goal = jnp.array([1.0, -2.0, 0.5, 3.0])
    normal = Normal.start(jnp.zeros(4), 1.0)
    for number in range(60):
        drawn = normal.draw(jax.random.key(number), 24)
        normal = normal.towards(drawn, jnp.sum((drawn - goal[None]) ** 2, -1))
    np.testing.assert_allclose(normal.mean, goal, atol=0.05)


def test_the_least_within_a_limit_is_taken():
    curve = [(10, 1.0, 3.0), (20, 2.0, 2.0), (30, 3.0, 1.0)]
    assert naas._least(curve, 0, 20) == pytest.approx(np.exp(2)) and naas._least(curve, 1, 9) == pytest.approx(np.e)
    assert naas._least(curve, 0, 5) == pytest.approx(np.exp(3))


@pytest.mark.parametrize(("gain", "verdicts"), [(1.5, ["Reproduced", "Reproduced"]), (0.9, ["Not reproduced"] * 2)])
def test_verdicts_follow_from_medians(gain, verdicts):
    columns = ("equal evaluations", "equal time")
    costs = {SIZING: gain, INDEX: gain, IMPORTANCE: 1.0}
    found = {naas._METHODS[encoding]: {at: [cost] * 3 for at in columns} for encoding, cost in costs.items()}
    found[naas._GRADIENT] = {at: [2.0] * 3 for at in columns}
    assert [claim.split(":")[0] for claim in naas._claims(found)[:2]] == verdicts


@pytest.mark.slow
def test_a_run_writes_its_table_and_its_plots(tmp_path, capsys):
    assert main(["run", "naas", "--quick", "--seeds", "1", "--results", str(tmp_path)]) == 0
    (result,) = tmp_path.glob("naas/*/result.json")
    found = json.loads(result.read_text())["metrics"]["found"]
    assert set(found) == {*naas._METHODS.values(), naas._GRADIENT}
    assert all(value > 0 for each in found.values() for value in each["equal evaluations"])
    assert {path.name for path in result.parent.glob("*.png")} == {"edp_by_evaluations.png", "edp_by_seconds.png"}
    assert "evaluations a second" in capsys.readouterr().out
