"""MiniLM as a classifier of sentences: its loss, its accuracy, and training in rounds that can be taken up again."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import jaxcomp as jc
from experiments import _minilm
from experiments._kept import resumed
from experiments._minilm import Params
from experiments._sst2 import Rows

_CHUNK = 64  # rows evaluated at once
_WARM_UP = 0.1  # of the steps of a training


class Task:
    """An encoder and a linear layer on the means of its hidden states. The embeddings stay as they are given.

    Args:
        embeddings: of the encoder: carried beside the weights, since nothing trains them.
        train: what the loss is of.
        batch_size: rows a step.
        steps: steps a round.
        learning_rate: of AdamW, reached linearly; then constant while a solver coordinates, and along a line to zero
            in retraining.
        folder: where unfinished trainings keep their checkpoints.
        console: for progress.
    """

    def __init__(
        self,
        embeddings: Params,
        train: Rows,
        *,
        batch_size: int,
        steps: int,
        learning_rate: float,
        folder: Path,
        console: Console,
    ):
        self.embeddings, self.train, self.folder, self.console = embeddings, train, folder, console
        self.batch_size, self.steps, self.learning_rate = batch_size, steps, learning_rate

    def run(
        self,
        name: str,
        params: Params,
        solver: jc.Solver,
        *,
        seed: int,
        rounds: int = 0,
        retrain: int = 0,
        checkpoints: bool = True,
    ) -> Params:
        """`rounds` of the solver at a constant rate, or `retrain` rounds of what its sets admit at a falling one.

        With checkpoints an interrupted training goes on where it was, and one that is done is not done again.
        """
        total = (rounds + retrain) * self.steps
        return jc.compress(
            loss,
            params,
            jc.shuffled(self.train, self.batch_size, total, seed),
            solver,
            optimizer=_optimizer(self.learning_rate, total, falling=retrain > 0),
            rounds=rounds,
            steps=self.steps,
            retrain=retrain,
            model_state=self.embeddings,
            early_stop=False,
            stage=name,
            console=self.console,
            **(resumed(self.folder, f"{name}-{seed}") if checkpoints else {}),
        ).params

    def accuracy(self, params: Params, rows: Rows) -> float:
        """Share of sentences classified right, 0 to 1."""
        chunks = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
        right = sum(int(_right(params | {"embeddings": self.embeddings}, chunk)) for chunk in chunks)
        return right / int(np.sum(rows.labels >= 0))


def with_head(params: Params, classes: int = 2) -> Params:
    """With a linear layer of zeros: at the start all classes are alike."""
    width = params["embeddings"]["word"].shape[1]
    return params | {"head": {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}}


def loss(params: Params, rows: Rows, embeddings: Params) -> tuple[jax.Array, Params]:
    """Mean cross-entropy of the sentences of a batch, and the embeddings as they were."""
    found = logits(params | {"embeddings": embeddings}, rows)
    entropy = optax.softmax_cross_entropy_with_integer_labels(found, jnp.maximum(rows.labels, 0))
    there = rows.labels >= 0
    return jnp.sum(entropy * there) / jnp.sum(there), embeddings


def logits(params: Params, rows: Rows) -> jax.Array:
    """``[rows, sentences, classes]``."""
    hidden = _minilm.encode(params, rows.tokens, rows.segments, rows.positions)
    return _scores(params, _minilm.sentence_vectors(hidden, rows.segments, rows.labels.shape[1]))


def classify(params: Params, tokens: jax.Array) -> jax.Array:
    """Logits ``[rows, classes]`` of tokens ``[rows, length]``, a sentence a row, 0 where it has ended."""
    segments = jnp.asarray(tokens != 0, jnp.int32)
    return _scores(params, _minilm.sentence_vectors(_minilm.encode(params, tokens, segments), segments, 1))[:, 0]


def _scores(params: Params, vectors: jax.Array) -> jax.Array:
    return vectors @ params["head"]["kernel"] + params["head"]["bias"][None, None]


@jax.jit
def _right(params: Params, rows: Rows) -> jax.Array:
    return jnp.sum(logits(params, rows).argmax(-1) == rows.labels)  # which is -1 where there is no sentence


@functools.cache  # one object, so one compilation, for all trainings of this length
def _optimizer(learning_rate: float, steps: int, falling: bool) -> optax.GradientTransformation:
    warm = max(1, round(_WARM_UP * steps))
    after = optax.linear_schedule(learning_rate, 0.0 if falling else learning_rate, steps - warm)
    rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warm), after], [warm])
    return optax.adamw(rate, weight_decay=0.01)
