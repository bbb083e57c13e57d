"""MiniLM pruned by columns of blocks in three ways, two numbers apart, from one fine-tuned network a seed."""

import functools
import operator
import tempfile
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import jaxcomp as jc
from experiments import _minilm, _sst2
from experiments._bert_block_task import Task, with_head
from experiments._classifier import Landing
from experiments._compression_report import Outcome
from experiments._minilm import Params
from experiments._sst2 import Rows
from experiments._trials import best
from experiments._wordpiece import WordPiece

REWEIGHTED, FIXED, ONE_SHOT = "reweighted group lasso", "fixed group lasso", "one-shot magnitude"
METHODS = (REWEIGHTED, FIXED, ONE_SHOT)
_FLAT = 1e3  # an epsilon beside which all sizes are alike, so that no group is pushed harder than another
_TINY = 1e-3  # and one beside which none is but those that are all but gone


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each; `rates` are weights of the encoder's matrices before by those kept.

    A batch is of rows of `length` pieces of words, which hold `most` sentences at most. Blocks are strips of `strip`
    outputs by all inputs; of the matrix into the hidden layer there is one strip, of all outputs. A lasso of a `reach`
    is as strong as takes a column of a strip, if it is so many times the root mean square of its matrix, to zero in
    the rounds, where the loss does not hold it. Of several, each lasso has at each rate the one that leaves the first
    seed most accurate on the development set, just cut. Of `layers` and `sentences` fewer can be taken than there are.
    Latencies are medians over so many `pairs` of calls.
    """

    batch_size: int = 12
    steps: int = 54  # a quarter of an epoch
    learning_rate: float = 2e-4
    length: int = 64
    most: int = 8
    finetune: int = 12
    rounds: int = 9
    retrain: int = 3
    rates: tuple[float, ...] = (2.0, 3.3, 5.0)
    strip: int = 128
    reach: tuple[float, ...] = (1.0,)
    layers: int = 6
    sentences: int = 0
    pairs: int = 31

    @classmethod
    def quick(cls) -> "Config":
        """For seconds: two layers and few sentences."""
        return cls(
            steps=4, finetune=4, rounds=2, retrain=2, rates=(5.0,), reach=(0.5,), layers=2, sentences=300, pairs=5
        )


class Prepared(NamedTuple):
    """Weights with their embeddings, and sentences by split."""

    params: Params
    splits: dict[str, Rows]


def prepared(config: Config) -> Prepared:
    """The pretrained encoder with a head of zeros, and SST-2 in its pieces of words.

    Raises:
        UsageError: the weights or the sentences are not at hand.
    """
    tokenize = WordPiece(_minilm.vocabulary())
    params = with_head(_minilm.pretrained())
    splits = {}
    for split in _sst2.SPLITS:
        sentences, labels = _sst2.load(split)
        n = config.sentences or len(labels)
        splits[split] = _sst2.packed(sentences[:n], labels[:n], tokenize, length=config.length, most=config.most)
    beyond = [f"layer{i}" for i in range(config.layers, _minilm.Sizes().depth)]
    return Prepared({name: part for name, part in params.items() if name not in beyond}, splits)


class Study:
    """The methods, and what they left. The task has the embeddings, `params` the rest."""

    def __init__(self, task: Task, params: Params, splits: dict[str, Rows], config: Config):
        self.task, self.params, self.splits, self.config = task, params, splits, config
        self.finetuned, self.trained = functools.cache(self._finetuned), functools.cache(self._trained)

    def spec(self, rate: float) -> jc.Spec:
        """In every strip of every matrix of the encoder, one column in `rate`.

        A hidden unit that no strip of the matrix out of the layer reads is gone, and with it an output of the matrix
        into it. In one strip what is left of that is a dense matrix; in many it would be strips of uneven width.
        """
        width, hidden = self.params["layer0"]["feedforward"]["up"]["kernel"].shape

        def columns(strip: int, inputs: int) -> jc.Sparse:
            return jc.Sparse(1 / rate, jc.block_columns(strip, inputs))

        rules = {
            r"layer\d+/feedforward/up/kernel": columns(hidden, width),
            r"layer\d+/feedforward/down/kernel": columns(self.config.strip, hidden),
            r"layer\d+/attention/.*/kernel": columns(self.config.strip, width),
        }
        return jc.assign(self.params, rules)

    def solver(self, method: str, reach: float) -> jc.Reweighted:
        """The lasso of a method; of no reach it is magnitude's. It ends with nothing cut."""
        spec, steps = self.spec(1.0), self.config.rounds * self.config.steps
        epsilon = _TINY if method == REWEIGHTED else _FLAT
        strength = {}
        for path, constraint in spec.items():
            kernel = functools.reduce(operator.getitem, path.split("/"), self.params)
            size = reach * float(np.sqrt(np.mean(np.square(kernel))))
            # A step takes strength / (a group's size + epsilon) / its weights from the size, so that in all the steps
            # the reweighted lasso takes as much from half its square, and the fixed one from itself.
            taken = size**2 / 2 if method == REWEIGHTED else size * _FLAT
            strength[path] = constraint.view.rows * taken / steps
        return jc.Reweighted(spec, strength, epsilon=epsilon, decoupled=True)

    def chosen_reach(self, method: str, rate: float, seed: int) -> float:
        """The one that leaves the network most accurate on the development set, just cut at the rate."""
        reaches = self.config.reach if method in (REWEIGHTED, FIXED) else (0.0,)
        spec = self.spec(rate)

        def score(reach: float) -> float:
            return self.task.accuracy(jc.project(spec, self.trained(method, reach, seed)), self.splits["dev"])

        return best(reaches, score)

    def dense(self, seed: int) -> float:
        """Test accuracy of the network trained on for as many rounds, nothing pruned."""
        trained = self.trained(ONE_SHOT, 0.0, seed)
        return self.task.accuracy(self._retrained("trained on", trained, {}, seed), self.splits["test"])

    def outcome(self, method: str, reach: float, rate: float, seed: int) -> dict[str, Any]:
        """What a method left at a rate, as cut and after masked fine-tuning; and what that takes on disk."""
        spec = self.spec(rate)
        landed = jc.project(spec, self.trained(method, reach, seed))
        params = self._retrained(f"{method} {rate:g}x", landed, spec, seed)
        report = jc.report(spec, params)
        outcome = Outcome(
            landed=self.task.accuracy(landed, self.splits["test"]),
            accuracy=self.task.accuracy(params, self.splits["test"]),
            kept=report.nonzeros,
            ratio=report.weight_ratio,
            storage_ratio=report.storage_ratio,
            violation=report.violation,
            layers={leaf.path: leaf.nonzeros for leaf in report.constrained},
        )
        return {"outcome": outcome, "bytes": self.stored(params, spec)}

    def stored(self, params: Params, spec: jc.Spec) -> dict[str, int]:
        """Bytes of the encoder's matrices, as promised and in a file, and of the whole model in a file."""
        with tempfile.TemporaryDirectory() as folder:
            saved = jc.save(f"{folder}/model", params | {"embeddings": self.task.embeddings}, spec)
        matrices = self.spec(1.0)
        promised = (leaf.stored_bits for leaf in jc.report(spec, params).leaves if leaf.path in matrices)
        return {
            "promised": round(sum(promised) / 8),
            "matrices": sum(leaf.bytes for leaf in saved.leaves if leaf.path in matrices),
            "model": sum(leaf.bytes for leaf in saved.leaves),
        }

    def _finetuned(self, seed: int) -> Params:
        """The network that all methods start from."""
        return self.task.run("dense", self.params, Landing({}), seed=seed, retrain=self.config.finetune)

    def _trained(self, method: str, reach: float, seed: int) -> Params:
        """The same, trained on with the lasso of a method and not yet cut."""
        start, solver, name = self.finetuned(seed), self.solver(method, reach), f"{method} {reach:g}"
        return self.task.run(name, start, solver, seed=seed + 1000, rounds=self.config.rounds)

    def _retrained(self, name: str, params: Params, spec: jc.Spec, seed: int) -> Params:
        """Within the sets; a short training, so without checkpoints."""
        rounds = self.config.retrain
        return self.task.run(name, params, Landing(spec), seed=seed + 2000, retrain=rounds, checkpoints=False)


def padded(rows: Rows) -> np.ndarray:
    """The first sentence of the first row, alone in a row of that length: int32 ``[1, length]``."""
    return np.where(rows.segments[:1] == 1, rows.tokens[:1], 0)
