"""Clusters that train transformers: how long sequences may be, and what a step over packs of them takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp.hwmodels._mode import Exact, Mode

_GIB, _MIB = 2.0**30, 2.0**20


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingCluster:
    r"""Replicas of a transformer, each cut over ``tensor * stages`` processors, by Hydraulis' two regressions.

    A micro-batch of sequences of ``s_i`` tokens takes, forth and back,

        t = quadratic_s * sum_i s_i ** 2 + linear_s * sum_i s_i + constant_s.

    Attention does not reach over the edges of a pack, so squares are summed, not the sum squared. A step over ``v``
    micro-batches in a pipeline takes ``(v + stages - 1)`` times the slowest, and the slowest replica counts
    (`iteration_s`). A processor holds, in bytes,

        activations = layers * tokens * hidden / tensor * token_bytes
        states      = (layers / stages * hidden ** 2 * parameter_bytes + hidden * vocabulary * e) / tensor
                      * (sharded / replicas + 1 - sharded),           e = 32, or 16 in a pipeline,

    and what room they leave says how long a sequence, or a pack, may be (`longest`). A pipeline holds the activations
    of as many micro-batches as it has stages, so they are not divided by it.

    Every number is a leaf, a number or an array ``[strategies]``: one call tells all strategies of a pool.
    No `jaxcomp.hwmodels.Device`: the regressions know sequences, not products.

    Measured against the literature page, which follows the authors' code: `longest` equals all eight lengths, 378.3 ms
    for 8192 tokens with the model of 7 thousand million parameters cut in eight.
    Test: ``tests/hwmodels/test_training_cluster.py``.
    Not validated on: a cluster of ours. The times are fits of others' measurements on A800 and A100 processors, and
    hold between the lengths that were profiled; only their ratios carry over.

    Args:
        tensor, stages: processors that share a layer, and stages of the pipeline.
        quadratic_s, linear_s, constant_s: seconds for a squared token, a token, and a micro-batch.
        layers, hidden, vocabulary: of the transformer.
        token_bytes, parameter_bytes: activations and states, as the regressions have them.
        replicas: that share the optimizer's state.
        sharded: of the state, the share that they divide.
        memory_bytes, safe_bytes, gap_bytes: of a processor, and what of it is left free.
        sync_s: seconds to add up gradients of replicas that are cut in different ways; the authors take 0.3.

    >>> cluster = TrainingCluster(8, 1, 5.06885473e-10, 3.66182377e-5, 0.044317477753, replicas=2, token_bytes=48)
    >>> f"{float(cluster.pack_s(jnp.array([8192.0]))) * 1e3:.1f} ms, {int(cluster.longest()):,} tokens"
    '378.3 ms, 81,879 tokens'

    References: Li et al., Hydraulis, arXiv 2412.07894.
    """

    tensor: Any
    stages: Any
    quadratic_s: Any
    linear_s: Any
    constant_s: Any
    layers: Any = 32
    hidden: Any = 4096
    vocabulary: Any = 30592
    token_bytes: Any = 38
    parameter_bytes: Any = 210
    replicas: Any = 1
    sharded: Any = 0.75
    memory_bytes: Any = 81252 * _MIB
    safe_bytes: Any = 6 * _GIB
    gap_bytes: Any = 5000 * _MIB
    sync_s: Any = 0.0

    @classmethod
    def from_row(cls, row: Mapping[str, str], replicas: Any = 1, safe_gib: float = 6.0) -> "TrainingCluster":
        """A row of the authors' pool, columns named as in ``hydraulis_strategy_pool.csv``; times there are in ms.

        They leave 6, 8 and 10 GiB free for 7, 13 and 32 thousand million parameters, and 40 536 MiB are the memory of
        an A100 where 81 252 are that of an A800.
        """
        number = {name: float(row[name]) for name in _COLUMNS}
        return cls(
            number["tp"],
            number["pp"],
            number["a_ms_per_tok2"] / 1e3,
            number["b_ms_per_tok"] / 1e3,
            number["c_ms"] / 1e3,
            layers=number["layers"],
            hidden=number["hidden"],
            token_bytes=number["act_bytes_A"],
            parameter_bytes=number["param_bytes_B"],
            sharded=number["alpha"],
            replicas=replicas,
            safe_bytes=safe_gib * _GIB,
            memory_bytes=(40536 if "A100" in row["gpu"] else 81252) * _MIB,
        )

    @property
    def processors(self) -> Any:
        """Of one replica."""
        return self.tensor * self.stages

    @property
    def state_bytes(self) -> Any:
        """Parameters, gradients and optimizer on one processor."""
        embedding = (16 + 16 * (self.stages == 1)) * (1.0 * self.hidden * self.vocabulary)
        blocks = self.layers / self.stages * self.hidden**2.0 * self.parameter_bytes
        return (blocks + embedding) / self.tensor * (self.sharded / self.replicas + 1 - self.sharded)

    def activation_bytes(self, tokens: Any) -> Any:
        """Of micro-batches of so many tokens, on one processor."""
        return tokens * self._token_bytes

    def longest(self, mode: Mode = Exact()) -> jax.Array:
        """Most tokens of a micro-batch that one processor has room for; 0 where the states alone are too large.

        Whole tokens in exact mode, and right with plain numbers as leaves; arrays of float32 may be one token short.
        """
        room = self.memory_bytes - self.safe_bytes - self.gap_bytes - self.state_bytes
        return -mode.ceil(-mode.maximum(room / self._token_bytes, 0.0))

    def pack_s(self, lengths: Any, shares: Any = 1.0) -> jax.Array:
        """Seconds of one micro-batch.

        Args:
            lengths: tokens of its sequences, ``[sequences]``; 0 where there is none.
            shares: of every sequence that belongs to it, 0 to 1.
        """
        lengths = jnp.asarray(lengths)
        work = self.quadratic_s * jnp.sum(shares * lengths**2) + self.linear_s * jnp.sum(shares * lengths)
        return work + self.constant_s

    def iteration_s(self, lengths: Any, assignment: Any, mode: Mode = Exact()) -> jax.Array:
        """Seconds of a training step: the slowest replica, all of them this strategy, or each one of a pool.

        A micro-batch counts by the largest share in it, so one that is empty is not run; a replica without any takes
        no time (the authors refuse it). Derivatives by shares are those of a relaxed assignment.

        Args:
            lengths: tokens, ``[sequences]``; 0 for padding, of a share of 0 everywhere.
            assignment: ``[replicas, micro-batches, sequences]``, the share of every sequence that goes there: 0 or 1,
                or between. Shares of a sequence add up to 1.
            mode: exact, or smooth.
        """
        assignment = jnp.asarray(assignment, jnp.result_type(float))
        here = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), assignment.shape[:1]), self)
        each = jax.vmap(lambda replica, shares: replica._replica_s(lengths, shares, mode))(here, assignment)
        return mode.maximum(*each) + jnp.max(here.sync_s)

    def _replica_s(self, lengths: Any, shares: jax.Array, mode: Mode) -> jax.Array:
        """Of one replica: the slowest of its micro-batches ``[micro-batches, sequences]``, once for each and fill."""
        seconds = jax.vmap(self.pack_s, (None, 0))(lengths, shares)
        used = jnp.max(shares, axis=1, initial=0.0)
        full = jnp.sum(used)
        slowest = mode.maximum(*jnp.where(used > 0, seconds, 0.0))
        return jnp.where(full > 0, slowest * (full + self.stages - 1), 0.0)

    @property
    def _token_bytes(self) -> Any:
        return self.layers * (1.0 * self.hidden) / self.tensor * self.token_bytes


_COLUMNS = (
    *("layers", "hidden", "tp", "pp", "a_ms_per_tok2", "b_ms_per_tok", "c_ms"),
    *("act_bytes_A", "param_bytes_B", "alpha"),
)
