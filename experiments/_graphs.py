"""Graphs of papers that cite each other, a graph convolution over them, and what an attacker may do to their edges."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxcomp as jc
from experiments._data import FOLDER_VARIABLE
from experiments._errors import UsageError

Params = dict[str, jax.Array]
BLOCKS = "blocks"
NAMES = (BLOCKS, "cora", "citeseer")


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Graph:
    """An undirected graph whose nodes have features and labels.

    Attributes:
      features: float32 ``[nodes, features]``, rows sum to 1.
      labels: int32 ``[nodes]``, -1 where there is none.
      pairs: the edges, int32 ``[edges, 2]``, the smaller node first, every edge once.
      train, validation, test: nodes, int32.
      classes: how many.
    """

    features: jax.Array
    labels: jax.Array
    pairs: jax.Array
    train: jax.Array
    validation: jax.Array
    test: jax.Array
    classes: int = dataclasses.field(metadata={"static": True})

    @property
    def nodes(self) -> int:
        return self.features.shape[0]


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Changes:
    """Edges to add (weight 1) or delete (-1), 0 for none: ``pairs`` int32 ``[n, 2]``, ``weight`` float32 ``[n]``."""

    pairs: jax.Array
    weight: jax.Array

    def scaled(self, by: jax.Array) -> "Changes":
        """Each in part."""
        return Changes(self.pairs, self.weight * by)

    def at(self, order: jax.Array) -> "Changes":
        """Those at these positions; -1 for none."""
        return Changes(self.pairs[order], jnp.where(order < 0, 0, self.weight[order]))


def load(name: str) -> Graph:
    """The graph called ``name``.

    | name | nodes | edges | features | classes | train / validation / test |
    |---|---|---|---|---|---|
    | blocks | 300 | about 1250 | 16 | 3 | 60 / 40 / 200, drawn from a stochastic block model, no files needed |
    | cora | 2708 | 5278 | 1433 | 7 | 140 / 500 / 1000, the public split |
    | citeseer | 3327 | 4552 | 3703 | 6 | 120 / 500 / 1000, the public split |

    Raises:
      UsageError: the name is unknown, or ``graphs/NAME.npz`` is not in ``$JAXCOMP_DATA``.
    """
    if name not in NAMES:
        raise UsageError(f"unknown graph {name!r}: expected one of {', '.join(NAMES)}.")
    if name == BLOCKS:
        return _blocks()
    path = Path(os.environ.get(FOLDER_VARIABLE, "../shared/data")) / "graphs" / f"{name}.npz"
    if not path.is_file():
        raise UsageError(
            f"there is no {path}: name the folder that holds graphs/{name}.npz by ${FOLDER_VARIABLE}, or use the graph "
            f"{BLOCKS!r}, which needs no files."
        )
    with np.load(path) as g:
        features = np.zeros(g["x_shape"], np.float32)
        features[np.repeat(np.arange(len(features)), np.diff(g["x_indptr"])), g["x_indices"]] = 1
        return _graph(features, g["labels"], g["edges"], g["train_idx"], g["val_idx"], g["test_idx"])


def _blocks(nodes: int = 300, classes: int = 3, inside: float = 0.06, across: float = 0.01) -> Graph:
    """A stochastic block model; one feature in sixteen tells each class, faintly."""
    rng = np.random.default_rng(0)
    labels = np.arange(nodes) % classes
    likely = np.where(labels[:, None] == labels[None, :], inside, across)
    pairs = np.argwhere(np.triu(rng.random((nodes, nodes)) < likely, 1))
    features = rng.random((nodes, 16)) < 0.3
    features[:, :classes] |= (labels[:, None] == np.arange(classes)) & (rng.random((nodes, classes)) < 0.5)
    order = rng.permutation(nodes)
    return _graph(features.astype(np.float32), labels, pairs, order[:60], order[60:100], order[100:])


def _graph(features, labels, pairs, train, validation, test) -> Graph:
    def whole(array):
        return jnp.asarray(array, jnp.int32)

    return Graph(
        features=jnp.asarray(features / np.maximum(features.sum(axis=1, keepdims=True), 1)),
        labels=whole(labels),
        pairs=whole(pairs),
        train=whole(train),
        validation=whole(validation),
        test=whole(test),
        classes=int(labels.max()) + 1,
    )


# ---- the network: P relu(P X W0) W1 with P = D^-1/2 (A + I) D^-1/2


def initial(graph: Graph, hidden: int, key: jax.Array) -> dict[str, jax.Array]:
    """Fresh weights, Glorot's."""
    glorot = jax.nn.initializers.glorot_uniform()
    first, second = jax.random.split(key)
    shapes = (graph.features.shape[1], hidden), (hidden, graph.classes)
    return {"hidden": glorot(first, shapes[0]), "out": glorot(second, shapes[1])}


def embedded(params: Params, graph: Graph) -> jax.Array:
    """``X W0``, which no edge changes: an attack computes it once."""
    return graph.features @ params["hidden"]


def logits(params: Params, graph: Graph, x: jax.Array, changes: Changes | None = None) -> jax.Array:
    """``[nodes, classes]`` from ``x = embedded(params, graph)``, by edges: memory does not grow with all pairs."""
    return _convolved(params, graph, x, changes, (0.0, 0.0, 0.0))[0]


def _convolved(params, graph, x, changes, probes):
    """Logits, and what the two layers pass along edges; probes are added to what arrives, and to the degrees."""
    pairs, weight = graph.pairs, jnp.ones(len(graph.pairs))
    if changes is not None:
        pairs = jnp.concatenate([pairs, changes.pairs])
        weight = jnp.concatenate([weight, changes.weight])
    weight = jnp.concatenate([weight, weight])
    start, end = jnp.concatenate([pairs, pairs[:, ::-1]]).T

    def arrive(messages):
        return jax.ops.segment_sum(messages, end, graph.nodes)

    # Of edges that are there, or not, or in part, every degree is 0 or more; an estimator may look a little beyond.
    root = lax.rsqrt(jnp.maximum(arrive(weight) + probes[2] + 1, 0.5))[:, None]
    first = root * x
    hidden = root * (arrive(weight[:, None] * first[start]) + probes[0] + first)
    second = root * (jax.nn.relu(hidden) @ params["out"])
    return root * (arrive(weight[:, None] * second[start]) + probes[1] + second), (first, second)


def slopes(
    harm: Callable[[jax.Array], jax.Array], params: Params, graph: Graph, x: jax.Array, changes: Changes | None = None
) -> jax.Array:
    """The derivative of ``harm(logits)`` with respect to the weight of an edge between every two nodes.

    It is a product of two thin matrices, of what nodes send and of how much it matters what they receive: the network
    itself is still computed by its edges.
    """

    def harmed(probes):
        out, sent = _convolved(params, graph, x, changes, probes)
        return harm(out), sent

    shapes = (*x.shape,), (graph.nodes, graph.classes), (graph.nodes,)
    (*received, degree), sent = jax.grad(harmed, has_aux=True)(tuple(map(jnp.zeros, shapes)))
    one = jnp.ones((graph.nodes, 1))
    from_, to = jnp.concatenate([*sent, one], axis=1), jnp.concatenate([*received, degree[:, None]], axis=1)
    return jnp.concatenate([to, from_], axis=1) @ jnp.concatenate([from_, to], axis=1).T


def error(out: jax.Array, graph: Graph, nodes: jax.Array) -> jax.Array:
    """Share of these nodes that are not given their label, 0 to 1."""
    return jnp.mean(jnp.argmax(out[nodes], axis=1) != graph.labels[nodes])


# ---- what an attacker may do


def promises(graph: Graph, slope: jax.Array) -> jax.Array:
    """What a flip of every pair promises to first order, ``[nodes, nodes]``; 0 but in the upper triangle."""
    upper = jnp.triu(slope, 1)
    return upper.at[graph.pairs[:, 0], graph.pairs[:, 1]].multiply(-1)


def chosen(graph: Graph, order: jax.Array) -> Changes:
    """Flips by their position in the flattened upper triangle of the matrix; -1 for none."""
    pairs = jnp.stack([order // graph.nodes, order % graph.nodes], axis=1)
    return Changes(jnp.where(order[:, None] < 0, 0, pairs), jnp.where(order < 0, 0, _sign(graph, pairs)))


def unlike_pairs(graph: Graph, out: jax.Array, nodes: jax.Array, count: int, key: jax.Array) -> Changes:
    """Pairs that may be worth a flip, by the logits alone.

    One end is drawn from the quarter of these nodes with the least margin, the other from all with another prediction.
    """
    first, second = jax.random.split(key)
    top = lax.top_k(out, 2)[0]
    doubtful = lax.top_k((top[:, 1] - top[:, 0])[nodes], max(len(nodes) // 4, 1))[1]
    one = jax.random.choice(first, nodes[doubtful], (count,))
    said = jnp.argmax(out, axis=1)
    in_order = jnp.argsort(said)
    start, stop = (jnp.searchsorted(said[in_order], said[one], side=side) for side in ("left", "right"))
    others = graph.nodes - (stop - start)
    place = jnp.minimum((jax.random.uniform(second, (count,)) * others).astype(jnp.int32), others - 1)
    two = in_order[jnp.where(place < start, place, place + stop - start)]
    codes = jnp.unique(jnp.minimum(one, two) * graph.nodes + jnp.maximum(one, two), size=count, fill_value=-1)
    return chosen(graph, codes)


def any_pairs(graph: Graph, count: int, key: jax.Array) -> Changes:
    """Pairs at random, each at most once."""
    one, two = jax.random.randint(key, (2, 2 * count), 0, graph.nodes)
    codes = jnp.unique(jnp.minimum(one, two) * graph.nodes + jnp.maximum(one, two), size=2 * count, fill_value=-1)
    fit = (codes >= 0) & (codes // graph.nodes != codes % graph.nodes)
    order = jax.random.uniform(jax.random.fold_in(key, 1), codes.shape)
    return chosen(graph, codes[jnp.argsort(jnp.where(fit, order, 2))[:count]])


def _sign(graph: Graph, pairs: jax.Array) -> jax.Array:
    """-1 for a pair that is an edge, 1 for one that is none, without a matrix of all pairs."""
    edges = jnp.sort(graph.pairs[:, 0] * graph.nodes + graph.pairs[:, 1])
    code = pairs[:, 0] * graph.nodes + pairs[:, 1]
    found = edges[jnp.minimum(jnp.searchsorted(edges, code), len(edges) - 1)] == code
    return jnp.where(found, -1.0, 1.0)
