"""Attacks that flip edges of a graph: at random, greedily by gradients or by queries, and by gradient ascent."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

import jaxcomp as jc
from experiments import _graphs
from experiments._graphs import Changes, Graph, Params

_SUPPORT = 8192  # flips in part that ascent keeps


def at_random(params: Params, graph: Graph, nodes: jax.Array, key: jax.Array, *, budget: int) -> Changes:
    """Flips of random pairs."""
    return _graphs.any_pairs(graph, budget, key)


def greedy_by_gradient(
    params: Params, graph: Graph, nodes: jax.Array, key: jax.Array, *, budget: int, each: int, best: int
) -> Changes:
    """The flips that promise most, ``each`` of them from one gradient, among the best by the gradient of all pairs."""
    x, harm = aim(params, graph, nodes)
    promised = _graphs.promises(graph, _graphs.slopes(harm, params, graph, x))
    candidates = _graphs.chosen(graph, lax.top_k(promised.ravel(), min(best, promised.size))[1])
    return _greedily(candidates, harm, params, graph, x, budget=budget, each=each, grad=jax.value_and_grad)


def greedy_by_queries(
    params: Params,
    graph: Graph,
    nodes: jax.Array,
    key: jax.Array,
    *,
    budget: int,
    candidates: int,
    estimator: jc.ZerothOrder,
) -> Changes:
    """The flips of the best zeroth-order scores among candidates: no gradient, and no look at all pairs."""
    x, harm = aim(params, graph, nodes)
    pairs = _graphs.unlike_pairs(graph, _graphs.logits(params, graph, x), nodes, candidates, key)
    estimator = dataclasses.replace(estimator, seed=key)
    return _greedily(pairs, harm, params, graph, x, budget=budget, each=budget, grad=estimator)


def _greedily(candidates: Changes, harm, params, graph, x, **how) -> Changes:
    def value(flips, candidates, params, graph, x):
        return harm(_graphs.logits(params, graph, x, candidates.scaled(flips)))

    none = jnp.zeros_like(candidates.weight)
    return candidates.at(jc.greedy(value, none, candidates, params, graph, x, **how).order)


def ascend(
    params: Params,
    graph: Graph,
    nodes: jax.Array,
    key: jax.Array,
    *,
    budget: int,
    iterations: int,
    eta: float,
    margin: bool = False,
) -> Changes:
    """Projected gradient ascent on flips in part, of all pairs; in the end those with the largest parts are made.

    After a step all parts but the 8192 largest are 0, as the projection leaves nearly all of them in any case. (The
    published code draws flips with the parts as probabilities; that leaves some of the budget unused, and does less.)
    """
    x, harm = aim(params, graph, nodes, margin)
    constraint: jc.Spec = {"parts": jc.BoxedBall(float(budget), "l1", low=0.0, high=1.0)}

    def step(carry, t):
        order, parts = carry
        slope = _graphs.slopes(harm, params, graph, x, _graphs.chosen(graph, order).scaled(parts))
        moved = (eta / jnp.sqrt(t) * _graphs.promises(graph, slope)).ravel().at[order].add(parts)
        largest, order = lax.top_k(moved, len(order))
        return (order, jc.project(constraint, {"parts": largest})["parts"]), None

    support = min(_SUPPORT, graph.nodes**2)
    start = jnp.full(support, -1, jnp.int32), jnp.zeros(support)
    (order, parts), _ = lax.scan(step, start, jnp.arange(1.0, iterations + 1))
    return _graphs.chosen(graph, jnp.where(parts > 0, order, -1)[:budget])  # the largest come first


def aim(params: Params, graph: Graph, nodes: jax.Array, margin: bool = False) -> tuple[jax.Array, Callable]:
    """``X W0`` and what an attack on these nodes raises, a function of the logits."""
    x = _graphs.embedded(params, graph)
    said = jnp.argmax(_graphs.logits(params, graph, x), axis=1)
    return x, functools.partial(_harm, nodes=nodes, said=said, margin=margin)


def _harm(logits: jax.Array, *, nodes: jax.Array, said: jax.Array, margin: bool) -> jax.Array:
    """What an attack raises: mean cross-entropy, or the mean margin below zero where there still is one."""
    logits, said = logits[nodes], said[nodes]
    if not margin:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, said))
    own = jax.nn.one_hot(said, logits.shape[1], dtype=bool)
    other = jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)
    return -jnp.mean(jax.nn.relu(jnp.sum(jnp.where(own, logits, 0), axis=1) - other))
