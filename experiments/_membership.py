"""Membership inference: who is in and who is out, and two attackers that try to tell them apart."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcomp as jc
from experiments._data import Dataset, Split

ATTACKERS = ("threshold", "network")
_HIDDEN, _STEPS, _THRESHOLDS = 64, 300, 500
_LEAST = -20.0  # logarithms of probabilities are cut off here: of 2e-9 and less an attacker learns nothing more
_ADAM = optax.adam(3e-3, b2=0.99)


Answers = tuple[np.ndarray, np.ndarray]  # logits and labels


@dataclass(frozen=True)
class Population:
    """Four disjoint samples of one size: only `members` and `reference` are seen in training.

    Attributes:
      members: what the classifier is fitted to.
      reference: others of the same kind, for a defence that plays against an attacker of its own.
      validation: non-members to choose settings by.
      test: non-members from the test split, for the figures that are reported.
    """

    members: Split
    reference: Split
    validation: Split
    test: Split


def size_of(data: Dataset, asked: int) -> int:
    """How many a sample has: as many as asked for, or a third of the training split, or all of the test split."""
    return min(asked, len(data.train) // 3, len(data.test))


def draw(data: Dataset, asked: int, noise: float, seed: int) -> Population:
    """Samples of `size_of` images: the first three from the training split.

    Every pixel of every image gets normal noise of deviation `noise`, drawn once: noise that the classifier can only
    learn by heart.
    """
    rng, size = np.random.default_rng(seed), size_of(data, asked)
    train, test = (rng.permutation(len(split)) for split in (data.train, data.test))

    def sample(split: Split, rows: np.ndarray) -> Split:
        image = split.image[rows]
        return Split((image + noise * rng.normal(size=image.shape)).astype(np.float32), split.label[rows])

    members, reference, validation = (sample(data.train, train[i * size : (i + 1) * size]) for i in range(3))
    return Population(members, reference, validation, sample(data.test, test[:size]))


def features_of(logits: jax.Array, label: jax.Array) -> jax.Array:
    """What attackers see: sorted log-probabilities, that of the label, and whether the label is the most probable."""
    log_p = jnp.maximum(jax.nn.log_softmax(logits), _LEAST)
    own = jnp.take_along_axis(log_p, label[:, None], axis=1)
    return jnp.concatenate([jnp.sort(log_p, axis=1), own, own == log_p.max(1, keepdims=True)], axis=1)


def attacker(num_classes: int, seed: int) -> dict[str, jax.Array]:
    """A fresh perceptron on `features_of`."""
    first, second = jax.random.split(jax.random.key(seed))
    width = num_classes + 2
    return {
        "w1": jax.random.normal(first, (width, _HIDDEN)) * (2 / width) ** 0.5,
        "b1": jnp.zeros(_HIDDEN),
        "w2": jax.random.normal(second, (_HIDDEN,)) * (1 / _HIDDEN) ** 0.5,
    }


def score(params: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """What an attacker makes of examples: the log of the odds that each is a member."""
    return jax.nn.relu(features @ params["w1"] + params["b1"][None]) @ params["w2"]


def attack(members: Answers, others: Answers, seed: int) -> dict[str, float]:
    """Balanced accuracy, 0.5 for guessing, of both attackers at telling members from others by their logits.

    Black box: an attacker has the class probabilities and the true label of an example, and knows of one half of the
    members and others which are which. It is fitted to that half after the defence is done, and tried on the other;
    then the halves change places, and the mean counts. The first attacker calls members those of a loss below a
    threshold. The second is a perceptron on the sorted logarithms of the probabilities, that of the label, and whether
    the label is the most probable.

    Args:
      members, others: logits ``[n, classes]`` and labels ``[n]``, n the same for both.
      seed: of the halves and of the perceptron.
    """
    n = len(members[1]) // 2 * 2
    order = np.random.default_rng(seed).permutation(n).reshape(2, -1)
    features = [np.asarray(features_of(*map(jnp.asarray, side))) for side in (members, others)]
    halves = [np.concatenate([side[half] for side in features]) for half in order]
    inside = np.repeat([True, False], n // 2)
    found: dict[str, list[float]] = {name: [] for name in ATTACKERS}
    for known, unknown in (halves, halves[::-1]):
        threshold = _best_threshold(known[:, -2], inside)
        found["threshold"].append(float(np.mean((unknown[:, -2] >= threshold) == inside)))
        found["network"].append(float(np.mean(_guess(known, inside, unknown, seed) == inside)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _best_threshold(score: np.ndarray, inside: np.ndarray) -> float:
    """The score at and above which an example is called a member, with the fewest mistakes."""
    candidates = np.quantile(score, np.linspace(0, 1, _THRESHOLDS))
    right = [np.mean((score >= threshold) == inside) for threshold in candidates]
    return float(candidates[int(np.argmax(right))])


def _guess(known: np.ndarray, inside: np.ndarray, unknown: np.ndarray, seed: int) -> np.ndarray:
    """Whom a perceptron fitted to the known calls members."""
    centre, scale = known.mean(0), known.std(0) + 1e-6
    batch = (jnp.asarray((known - centre) / scale), jnp.asarray(inside, jnp.float32))
    params = jc.solve(
        _attack_loss,
        attacker(known.shape[1] - 2, seed),
        jax.tree.map(lambda x: x[None], batch),
        jc.ADMM({}),
        optimizer=_ADAM,
        rounds=1,
        steps=_STEPS,
    ).params
    return np.asarray(score(params, jnp.asarray((unknown - centre) / scale)) > 0)


def _attack_loss(params: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    features, inside = batch
    decay = 1e-3 * sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))
    return optax.sigmoid_binary_cross_entropy(score(params, features), inside).mean() + decay
