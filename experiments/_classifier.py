"""A classifier to compress: its loss, its batches, its accuracy, and the same rounds of training for every method."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console

import jaxcomp as jc
from experiments._compression_report import Outcome
from experiments._data import Dataset, Split
from experiments._kept import resumed
from experiments._registry import Context

_CHUNK = 1000  # images evaluated at once


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Landing(jc.Solver):
    """Hard pruning, or what else projecting on the sets is, and nothing before it."""

    spec: jc.Spec

    def init(self, params: Any) -> tuple[()]:
        return ()

    def objective(self, state: tuple[()], losses: jax.Array, params: Any) -> jax.Array:
        return jnp.mean(losses)

    def coordinate(self, state: tuple[()], round: jc.Round, params: Any) -> tuple[()]:
        return state


class Classifier:
    """A flax model on a data set, trained in rounds of `steps` Adam steps.

    Every method of a comparison trains through `run`, so all have the same loss, optimiser and batches.

    Args:
      model: maps images to logits.
      data: the data set; the loss sees its training split only.
      batch_size: images a step.
      steps: steps a round; 0 for one epoch.
      learning_rate: of Adam: constant while a solver coordinates, along a half cosine to zero in retraining.
      folder: where unfinished runs keep their checkpoints, so that an interrupted command goes on where it was.
      console: for progress.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        *,
        batch_size: int,
        steps: int,
        learning_rate: float,
        folder: Path,
        console: Console,
    ):
        self.model, self.data, self.folder, self.console = model, data, folder, console
        self.batch_size, self.learning_rate = batch_size, learning_rate
        self.steps = steps or len(data.train) // batch_size
        self.constant = optax.adam(learning_rate)

    @classmethod
    def of(cls, model: type[nn.Module], config: Any, context: Context) -> "Classifier":
        """The model on the data of a run, by the fields of its configuration of the same names."""
        return cls(
            model(context.data.num_classes),
            context.data,
            batch_size=config.batch_size,
            steps=config.steps,
            learning_rate=config.learning_rate,
            folder=(context.folder / "checkpoints").absolute(),
            console=context.console,
        )

    def init(self, seed: int) -> Any:
        """Fresh weights."""
        return self.model.init(jax.random.key(seed), self.data.train.image[:1])["params"]

    def batches(self, seed: int, rounds: int) -> jc.Batches:
        """Shuffled training batches for so many rounds."""
        return jc.shuffled(self._train, self.batch_size, rounds * self.steps, seed)

    @functools.cached_property
    def _train(self) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(self.data.train.image), jnp.asarray(self.data.train.label)

    def loss(self, params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Mean cross-entropy."""
        logits = self.model.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def accuracy(self, params: Any, split: Split) -> float:
        """Share of images classified right, 0 to 1."""
        right = [self._right(params, *chunk) for chunk in _chunks(split)]
        return float(sum(right)) / len(split)

    @functools.cached_property
    def _right(self):
        return jax.jit(lambda params, x, y: jnp.sum(self.model.apply({"params": params}, x).argmax(-1) == y))

    def measured(self, landed: Any, params: Any, report: jc.Report) -> Outcome:
        """What compression left, in test accuracy and in weights: of networks before and after retraining."""
        pruned = bool(report.constrained)
        return Outcome(
            landed=self.accuracy(landed, self.data.test),
            accuracy=self.accuracy(params, self.data.test),
            kept=report.nonzeros if pruned else None,
            ratio=report.weight_ratio if pruned else 1.0,
            storage_ratio=report.storage_ratio,
            violation=report.violation,
            layers={leaf.path: leaf.nonzeros for leaf in report.constrained},
        )

    def solved(
        self,
        params: Any,
        solver: jc.Solver,
        *,
        seed: int,
        rounds: int,
        optimizer: optax.GradientTransformation | None = None,
        hold: jc.Spec | None = None,
    ) -> jc.Solution:
        """`jaxcomp.solve`: rounds at a constant rate, or with an optimiser given; hard projection at the end."""
        return jc.solve(
            self.loss,
            params,
            self.batches(seed, rounds),
            solver,
            optimizer=optimizer or self.constant,
            rounds=rounds,
            steps=self.steps,
            hold=hold,
        )

    def retrained(self, params: Any, spec: jc.Spec, *, seed: int, rounds: int) -> Any:
        """Weights projected and trained on within their sets, for so many rounds at a decaying rate."""
        return jc.solve(
            self.loss,
            params,
            self.batches(seed + 2000, rounds),
            Landing(spec),
            optimizer=decaying(self.learning_rate, rounds * self.steps),
            rounds=0,
            steps=self.steps,
            retrain=rounds,
        ).params

    def run(
        self, name: str, params: Any, solver: jc.Solver, *, seed: int, rounds: int = 0, retrain: int = 0, **options: Any
    ) -> jc.Result:
        """`jaxcomp.compress`: `rounds` of coordination at a constant rate, then `retrain` rounds at a decaying one.

        What ends in NaN or infinity is a result all the same, and not retrained.
        """
        solve = functools.partial(jc.compress, self.loss, steps=self.steps, console=self.console, early_stop=False)
        history, result = [], None
        if rounds:
            optimizer = options.pop("optimizer", self.constant)
            result = solve(
                params,
                self.batches(seed, rounds),
                solver,
                optimizer=optimizer,
                rounds=rounds,
                stage=name,
                **resumed(self.folder, f"{name}-{seed}-solve"),
                **options,
            )
            params, history = result.params, result.history
            if not all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)):
                return dataclasses.replace(result, diverged=True)
        after = solve(
            params,
            self.batches(seed + 1000, max(retrain, 1)),
            Landing(solver.spec),
            optimizer=decaying(self.learning_rate, max(retrain, 1) * self.steps),
            rounds=0,
            retrain=retrain,
            stage=f"{name}, retraining",
            **resumed(self.folder, f"{name}-{seed}-retrain"),
        )
        last = result or after
        return dataclasses.replace(
            after, history=[*history, *after.history], converged=last.converged, diverged=last.diverged
        )


@functools.cache  # one object, so one compilation, for all runs of this length
def decaying(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Adam along a half cosine that reaches zero after so many steps."""
    return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


def gradual_magnitude(spec: jc.Spec, steps: int, every: int) -> optax.GradientTransformation:
    """Gradual magnitude pruning as an optax transformation, to be put last in the chain.

    Every ``every`` steps the weights are projected on `spec` with its densities d relaxed to ``d + (1 - d) (1 - t)^3``,
    t going from 0 to 1 in ``steps`` steps (Zhu and Gupta, To Prune, or Not to Prune, 2017). In between the weights
    that are zero stay zero.
    """

    def at(count):
        left = (1 - jnp.clip(count / steps, 0, 1)) ** 3
        return {
            path: dataclasses.replace(set_, density=set_.density + (1 - set_.density) * left)
            for path, set_ in spec.items()
        }

    def update(updates, count, params):
        def prune(updates):
            pruned = jc.project(at(count + 1), optax.apply_updates(params, updates))
            return jax.tree.map(jnp.subtract, pruned, params)

        def keep(updates):
            return jc.tangent(at(count), params, updates)

        return jax.lax.cond((count + 1) % every == 0, prune, keep, updates), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _chunks(split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(split), _CHUNK):
        yield split.image[start : start + _CHUNK], split.label[start : start + _CHUNK]
