"""Every kind of parameter tree, and problems whose answer is known, shared by the tests."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxcomp as jc


class Dense(NamedTuple):
    kernel: Any
    bias: Any


class Pair(NamedTuple):
    conv: Dense
    fc: Dense


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Net:
    conv: Dense
    fc: Dense
    name: str = dataclasses.field(default="net", metadata={"static": True})


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3), name="conv")(x)
        return nn.Dense(3, name="fc")(x.reshape(x.shape[0], -1))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.fc = nnx.Linear(4, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)  # holds a random key and a counter
        self.activation = jax.nn.relu


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    fc: eqx.nn.Linear
    activation: Any

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(1, 2, 3, key=key)
        self.fc = eqx.nn.Linear(4, 3, key=key)
        self.activation = jax.nn.relu


def _dense(i, o):
    return Dense(jax.random.normal(jax.random.key(i), (i, o)), jnp.zeros(o))


def _linen():
    return LinenNet().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))["params"]


NAMED = {f"{layer}/{leaf}" for layer in ("conv", "fc") for leaf in ("kernel", "bias")}

# kind: (how to make a tree, the paths of its weights, a rule for its kernels)
PYTREES = {
    "dict": (lambda: {"conv": _dense(2, 2)._asdict(), "fc": _dense(4, 3)._asdict()}, NAMED, ".*/kernel"),
    "namedtuple": (lambda: Pair(_dense(2, 2), _dense(4, 3)), NAMED, ".*/kernel"),
    "list of tuples": (lambda: [(*_dense(2, 2),), (*_dense(4, 3),)], {"0/0", "0/1", "1/0", "1/1"}, ".*/0"),
    "dataclass": (lambda: Net(_dense(2, 2), _dense(4, 3)), NAMED, ".*/kernel"),
    "flax linen": (_linen, NAMED, ".*/kernel"),
    "nnx state": (lambda: nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param), NAMED, ".*/kernel"),
    "nnx module": (lambda: NnxNet(nnx.Rngs(0)), NAMED | {"dropout/rngs/count"}, ".*/kernel"),
    "equinox": (
        lambda: EquinoxNet(jax.random.key(0)),
        {f"{layer}/{leaf}" for layer in ("conv", "fc") for leaf in ("weight", "bias")},
        ".*/weight",
    ),
}


def quadratic(params, batch):
    """``1/2 sum h (w - a)^2``, whose minimum on a set is known for a diagonal curvature h."""
    return 0.5 * jnp.sum(batch["h"] * jnp.square(params["w"] - batch["a"]))


def quadratic_batches(a, h=1.0):
    a = jnp.asarray(a, jnp.float32)
    return {"a": a[None], "h": jnp.broadcast_to(jnp.asarray(h, jnp.float32), a.shape)[None]}


def regression(params, batch):
    """Mean squared error of a linear model with a bias."""
    return jnp.mean(jnp.square(batch["x"] @ params["w"] + params["b"][None] - batch["y"]))


def regression_problem(batches=3, seed=0):
    """Parameters and batches for `regression`: 6 inputs, 4 outputs, 8 examples a batch."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batches, 8, 6)).astype(np.float32)
    y = x @ rng.normal(size=(6, 4)).astype(np.float32)
    params = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "b": jnp.ones(4)}
    return params, {"x": jnp.asarray(x), "y": jnp.asarray(y)}
