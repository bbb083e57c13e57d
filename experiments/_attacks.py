"""Attacks on classifiers: perturbations within a ball that keep the pixels valid, by projected descent."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

import jaxcomp as jc
from experiments._victims import Forward, cross_entropies

CONFIDENCE = 50.0  # the logits by which a wrong class must lead before the margin is 0
TRANSFORMATIONS = ("as it is", "left to right", "upside down", "brighter", "gamma", "cropped")

Bounds = tuple[jax.Array, jax.Array]  # lowest and highest perturbation of every pixel


@dataclass(frozen=True)
class Attack:
    """Numbers of an attack on several risks, as the authors' scripts have them.

    Attributes:
      norm: of the perturbation: "l0", "l1", "l2" or "linf".
      radius: in that norm.
      alpha: *inverse* length of the perturbation's steps.
      beta: *inverse* length of the weights' steps.
      gamma: of the regulariser that draws the weights together.
      iterations: steps of each.
      noise: standard deviation of the start.
    """

    norm: str
    radius: float
    alpha: float
    beta: float
    gamma: float
    iterations: int
    noise: float = 0.0


def margin(logits: jax.Array, label: jax.Array) -> jax.Array:
    """By how much the label's logit exceeds the largest of the others, plus the confidence; 0 at least.

    (In the authors' first code the logits of other classes were multiplied by 0 instead of left out.)
    """
    is_label = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    own = jnp.max(jnp.where(is_label, logits, -jnp.inf), axis=-1)
    other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return jax.nn.relu(own - other + CONFIDENCE)


def valid(image: ArrayLike) -> Bounds:
    """What may be added to an image so that its pixels stay between 0 and 1."""
    image = jnp.asarray(image)
    return -image, 1 - image


def perturb(
    risks: Callable[..., jax.Array],
    attack: Attack,
    bounds: Bounds,
    examples: Any,
    shared: Any,
    *,
    average: bool = False,
    clipped: bool = False,
    seed: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """One perturbation an example against all its risks, ``[examples, ...]``, and the last weights of the risks.

    ``minimise over delta the maximum over w in the simplex of sum_i w_i F_i(delta) - gamma/2 ||w - 1/K||^2`` by
    `jaxcomp.solve` with `jaxcomp.MinMax`, vmapped over the examples, each of which has its own w.

    Args:
      risks: ``risks(delta, example, shared)``, an array with one entry a risk. A function that lives on.
      attack: its numbers.
      bounds: of the perturbations.
      examples: pytree of arrays with a leading axis of examples.
      shared: what all examples share, as the victims' weights.
      average: keep the weights equal.
      clipped: project on the ball and clip, instead of on the nearest point of both ("l1" and "l2").
      seed: of the start.
    """
    starts = attack.noise * jax.random.normal(jax.random.key(seed), bounds[0].shape)
    rate = 0.0 if average else 1 / attack.beta
    numbers = (float(attack.radius), 1 / attack.alpha, rate, float(attack.gamma))
    fixed = dict(norm=attack.norm, iterations=attack.iterations, clipped=clipped)
    return _perturb(risks, starts, bounds, examples, shared, numbers, **fixed)


@functools.partial(jax.jit, static_argnames=("risks", "norm", "iterations", "clipped"))
def _perturb(risks, starts, bounds, examples, shared, numbers, *, norm, iterations, clipped):
    radius, step, rate, gamma = numbers

    def one(start, bounds, example):
        spec: jc.Spec = {
            "delta": _clipped_ball(norm, radius, bounds) if clipped else jc.BoxedBall(radius, norm, *bounds)
        }
        count = jax.eval_shape(risks, start, example, shared).size
        solution = jc.solve(
            lambda params, batch: risks(params["delta"], *batch),
            jc.project(spec, {"delta": start}),
            jax.tree.map(lambda x: x[None], (example, shared)),  # one batch, as an argument
            jc.MinMax(count, gamma=gamma, rate=rate, spec=spec),
            optimizer=optax.chain(optax.sgd(step), jc.confine(spec)),
            rounds=iterations,
            steps=1,
        )
        return solution.params["delta"], solution.state.weights.value

    return jax.vmap(one)(starts, bounds, examples)


def _clipped_ball(norm: str, radius: ArrayLike, bounds: Bounds) -> jc.Constraint:
    return jc.Chain({"l1": jc.L1Ball, "l2": jc.L2Ball}[norm](radius), jc.Box(*bounds))


def attacked(
    forward: Forward, params: Any, image: jax.Array, label: jax.Array, norm: str, radius: ArrayLike, iterations: int
) -> jax.Array:
    """Every image of a batch, perturbed to raise its cross-entropy by steepest ascent in the norm, "l2" or "linf".

    Steps are of 2.5 times the radius over the iterations, from no perturbation. Nothing of it has a derivative.
    """
    params = jax.lax.stop_gradient(params)
    steepest = {"l2": optax.normalize_by_update_norm(), "linf": optax.scale_by_sign()}[norm]

    def one(image, label):
        spec: jc.Spec = {"delta": jc.BoxedBall(radius, norm, *valid(image))}

        def negative(perturbation, batch):
            params, image, label = batch
            return -cross_entropies(forward, params, (image + perturbation["delta"])[None], label[None])[0]

        step = optax.scale(-2.5 * radius / iterations)
        found = jc.solve(
            negative,
            {"delta": jnp.zeros_like(image)},
            jax.tree.map(lambda x: x[None], (params, image, label)),
            jc.ADMM({}),
            optimizer=optax.chain(steepest, step, jc.confine(spec)),
            rounds=1,
            steps=iterations,
        )
        return image + found.params["delta"]

    return jax.lax.stop_gradient(jax.vmap(one)(image, label))


def transformed(image: jax.Array) -> jax.Array:
    """The `TRANSFORMATIONS` of an image ``[height, width, channels]``, stacked."""
    cropped = jax.image.resize(image[2:-2, 2:-2], image.shape, "bilinear")
    brighter = jnp.minimum(image + 0.2, 1)
    darker = jnp.maximum(image, 1e-3) ** 1.3  # whose slope is finite at 0
    return jnp.stack([image, image[:, ::-1], image[::-1], brighter, darker, cropped])
