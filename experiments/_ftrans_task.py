"""Training a transformer to foretell text, its matrices in any form, and measuring how well it does."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import jaxcomp as jc
from experiments import _ftrans_kernels as kernels
from experiments._classifier import Landing
from experiments._ftrans_network import Transformer
from experiments._ftrans_text import Text, Windows
from experiments._kept import resumed

_CHUNK = 16  # windows evaluated at once
_WARM_UP = 0.05  # of the steps of a training


class Task:
    """A `Transformer` and a text. All ways of training have the same loss, and for a seed the same batches.

    Args:
        model: of the text's alphabet.
        text: the loss sees its training split only.
        batch_size: windows a step.
        steps: optimiser steps a round.
        windows: so many of a split are evaluated, at even distances.
        folder: where unfinished trainings keep their checkpoints.
        console: for progress.
    """

    def __init__(
        self,
        model: Transformer,
        text: Text,
        *,
        batch_size: int,
        steps: int,
        windows: int,
        folder: Path,
        console: Console,
    ):
        self.model, self.text, self.folder, self.console = model, text, folder, console
        self.batch_size, self.steps, self.windows = batch_size, steps, windows
        self._init = jax.jit(model.init)

    def init(self, seed: int) -> Any:
        """Fresh weights."""
        return self._init(jax.random.key(seed), self.text.train.read[:1])["params"]

    def apply(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Logits, of matrices in any form."""
        return self.model.apply({"params": kernels.decoded(params)}, tokens)

    def loss(self, params: Any, windows: Windows) -> jax.Array:
        """Mean cross-entropy in nats."""
        logits = self.apply(params, windows.read)
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows.follow.astype(jnp.int32)).mean()

    def bits(self, params: Any, windows: Windows) -> tuple[float, float]:
        """Bits a character, and the share of characters foretold."""
        chosen = windows.spread(self.windows)
        chunks = [chosen[start : start + _CHUNK] for start in range(0, len(chosen) - _CHUNK + 1, _CHUNK)]
        nats, foretold = np.mean([self._measured(params, chunk) for chunk in chunks], axis=0)
        return float(nats / np.log(2)), float(foretold)

    def trained(
        self, name: str, params: Any, spec: jc.Spec, *, seed: int, rounds: int, rate: float, checkpoints: bool = False
    ) -> Any:
        """Trained on within their sets, at a falling rate.

        With checkpoints an interrupted training goes on where it was, and one that is done is not done again.
        """
        return jc.compress(
            self.loss,
            params,
            self._batches(seed, rounds),
            Landing(spec),
            optimizer=_falling(rate, rounds * self.steps),
            rounds=0,
            steps=self.steps,
            retrain=rounds,
            stage=name,
            console=self.console,
            **(resumed(self.folder, f"{name}-{seed}") if checkpoints else {}),
        ).params

    def coordinated(self, params: Any, solver: jc.Solver, *, seed: int, rounds: int, rate: float) -> Any:
        """As a solver lands them, at a constant rate."""
        return jc.solve(
            self.loss,
            params,
            self._batches(seed, rounds),
            solver,
            optimizer=_constant(rate),
            rounds=rounds,
            steps=self.steps,
        ).params

    def _batches(self, seed: int, rounds: int) -> jc.Batches:
        return jc.shuffled(self._train, self.batch_size, rounds * self.steps, seed)

    @functools.cached_property
    def _train(self) -> Windows:
        return jax.tree.map(jnp.asarray, self.text.train)

    @functools.cached_property
    def _measured(self):
        def measured(params: Any, windows: Windows) -> jax.Array:
            logits, follow = self.apply(params, windows.read), windows.follow.astype(jnp.int32)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, follow)
            return jnp.stack([nats.mean(), jnp.mean(logits.argmax(-1) == follow)])

        return jax.jit(measured)


@functools.cache  # one object, so one compilation, for all trainings of this length
def _falling(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam, its rate reached linearly and left along a half cosine to zero."""
    warm = max(1, round(_WARM_UP * steps))
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, warm, steps))


_constant = functools.cache(optax.adam)  # likewise
