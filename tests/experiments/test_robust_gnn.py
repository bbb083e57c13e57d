"""Derivatives of all pairs, what flips do, attacks within their budget, and on Cora what the papers' setting gives."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _graph_attacks, _graph_report, _graphs, robust_gnn
from experiments.__main__ import main
from experiments._errors import UsageError

CONFIG = robust_gnn.Config.quick()
LOGITS = jax.jit(_graphs.logits)


@pytest.fixture(scope="module")
def graph():
    return _graphs.load("blocks")


@pytest.fixture(scope="module")
def params(graph):
    return jax.jit(robust_gnn.fitted, static_argnames="config")(graph, jax.random.key(0), config=CONFIG)


def edited(graph, changes):
    """The graph with its list of edges changed in Python."""
    edges = {tuple(pair) for pair in graph.pairs.tolist()}
    for pair, weight in zip(changes.pairs.tolist(), changes.weight.tolist(), strict=True):
        if weight:
            assert (tuple(pair) in edges) == (weight < 0)
            edges ^= {tuple(pair)}
    return dataclasses.replace(graph, pairs=jnp.array(sorted(edges)))


@pytest.mark.slow
def test_slopes_of_all_pairs_are_the_derivatives_by_the_weights_of_edges(graph):
    params = _graphs.initial(graph, 8, jax.random.key(0))
    x, changed = (
        _graphs.embedded(params, graph),
        jax.jit(_graphs.any_pairs, static_argnums=1)(graph, 20, jax.random.key(3)),
    )

    def harm(out):
        return jnp.sum(jnp.sin(3 * out))

    some = jnp.array([[0, 1], [5, 9], [10, 200], *graph.pairs[:3].tolist()])

    def moved(weight):
        joined = zip((changed.pairs, changed.weight), (some, weight), strict=True)
        return harm(_graphs.logits(params, graph, x, _graphs.Changes(*map(jnp.concatenate, joined))))

    slope = jax.jit(functools.partial(_graphs.slopes, harm))(params, graph, x, changed)
    np.testing.assert_allclose(slope[tuple(some.T)], jax.jit(jax.grad(moved))(jnp.zeros(6)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slope, slope.T, atol=1e-5)
    promised = jax.jit(_graphs.promises)(graph, slope)
    np.testing.assert_allclose(
        promised[tuple(some.T)], np.array([1, 1, 1, -1, -1, -1]) * slope[tuple(some.T)], rtol=1e-5
    )
    assert not jnp.any(jnp.tril(promised))


@pytest.mark.slow
def test_changes_add_what_is_no_edge_and_delete_what_is_one(graph, params):
    edge, other = graph.pairs[7], jnp.array([3, 299])
    order = jnp.array([edge[0] * 300 + edge[1], other[0] * 300 + other[1], -1])
    changes = _graphs.chosen(graph, order)
    np.testing.assert_array_equal(changes.weight, [-1, 1, 0])
    x, after = _graphs.embedded(params, graph), edited(graph, changes)
    np.testing.assert_allclose(LOGITS(params, graph, x, changes), LOGITS(params, after, x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(changes.at(jnp.array([1, -1])).weight, [1, 0])


@pytest.mark.slow
def test_candidates_join_a_node_in_doubt_to_one_that_is_called_another(graph, params):
    out = LOGITS(params, graph, _graphs.embedded(params, graph))
    search = jax.jit(_graphs.unlike_pairs, static_argnums=3)
    found = search(graph, out, graph.test, 256, jax.random.key(0))
    pairs = np.asarray(found.pairs)[np.asarray(found.weight) != 0]
    assert len(np.unique(pairs, axis=0)) == len(pairs) > 240 and (pairs[:, 0] < pairs[:, 1]).all()
    said, top = np.argmax(out, axis=1), np.sort(out, axis=1)
    assert (said[pairs[:, 0]] != said[pairs[:, 1]]).all()
    margin = top[:, -1] - top[:, -2]
    doubtful = np.asarray(graph.test)[np.argsort(margin[np.asarray(graph.test)])[:50]]
    assert np.isin(pairs, doubtful).any(axis=1).all()
    edited(graph, found)  # which looks at every sign


@pytest.mark.slow
def test_attacks_keep_their_budget_and_the_dearer_do_more_harm(graph, params):
    x, harm = _graph_attacks.aim(params, graph, graph.test)
    aim = params, graph, graph.test, jax.random.key(1)

    def run(attack, **how):
        return jax.jit(functools.partial(attack, budget=58, **how))(*aim)

    found = {
        "none": _graphs.chosen(graph, jnp.full(58, -1)),
        "random": run(_graph_attacks.at_random),
        "at once": run(_graph_attacks.greedy_by_gradient, best=1024, each=58),
        "one by one": run(_graph_attacks.greedy_by_gradient, best=1024, each=1),
        "ascent": run(_graph_attacks.ascend, iterations=40, eta=50.0),
    }
    harms = [float(harm(LOGITS(params, graph, x, changes))) for changes in found.values()]
    assert harms == sorted(harms) and harms[-1] > 1.5 * harms[0]
    for name, changes in found.items():
        assert jnp.sum(changes.weight != 0) == (0 if name == "none" else 58)
        edited(graph, changes)


@pytest.mark.slow
def test_queries_alone_do_more_harm_than_chance(graph, params):
    x, harm = _graph_attacks.aim(params, graph, graph.test)
    study = robust_gnn.Study(CONFIG, graph, graph.test)
    harms = {
        name: np.mean(
            [
                float(
                    harm(_graphs.logits(params, graph, x, jax.jit(study.attacks[name])(params, graph, graph.test, key)))
                )
                for key in jax.random.split(jax.random.key(0), 5)
            ]
        )
        for name in ("random", "zeroth order")
    }
    assert harms["zeroth order"] > 1.1 * harms["random"]


@pytest.mark.slow
def test_a_run_writes_its_tables_and_plot(tmp_path, capsys):
    settings = ["attacks=2", "steps=2", "epochs=20", "iterations=5", "inner=3", "candidates=128", "directions=16"]
    assert main(["run", "robust-gnn", "--quick", "--seeds", "2", "--results", str(tmp_path), "--set", *settings]) == 0
    (result,) = tmp_path.glob("robust-gnn/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    assert set(metrics["defences"]) == {"natural", *_graph_report.DEFENCES}
    assert metrics["calls"]["gradient ascent"] == [6, "gradients"] and metrics["calls"]["zeroth order"] == [
        36,
        "values",
    ]
    worst = metrics["defences"]["greedy"]["worst"]
    assert len(worst["each"]) == 2 and worst["mean"] >= metrics["defences"]["greedy"]["CE-PGD"]["mean"]
    assert (result.parent / "robustness.png").is_file()
    assert "zeroth order" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_on_cora_errors_are_those_of_the_papers_setting(monkeypatch, shared_data):
    monkeypatch.setenv("JAXCOMP_DATA", str(shared_data))
    graph = _graphs.load("cora")
    study = robust_gnn.Study(robust_gnn.Config(), graph, graph.test)
    assert study.budget == 263
    found = study.attacked(study.natural(0), 0, study.attacks)
    error = {name: outcome["error"] for name, outcome in found.items()}
    assert 0.165 < error["none"] < 0.2 and error["none"] - 0.01 < error["random"] < 0.215
    assert error["random"] < error["greedy, at once"] < error["CE-PGD"] and 0.24 < error["CE-PGD"] < 0.29


def test_a_graph_that_is_not_there_is_a_usage_error(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXCOMP_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"name the folder that holds graphs/cora\.npz"):
        _graphs.load("cora")
    with pytest.raises(UsageError, match="unknown graph 'karate': expected one of blocks, cora, citeseer"):
        _graphs.load("karate")
