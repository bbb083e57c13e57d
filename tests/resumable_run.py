"""A small run that another process may interrupt: ``python resumable_run.py DIRECTORY [PAUSE]`` goes on with it.

It prints the digest of what it found and the rounds it ran itself, a line each.
"""

import hashlib
import json
import sys
import time

import jax
import jax.numpy as jnp
import optax

import jaxcomp as jc

ROUNDS, RETRAIN = 4, 4
OPTIMIZER = optax.adamw(3e-2)


def loss(params, batch, noise):
    key, now = jax.random.split(noise["key"])
    out = batch["x"] @ params["w"] + params["b"][None] + 0.01 * jax.random.normal(now, (8, 4))
    mean = 0.9 * noise["mean"] + 0.1 * jnp.mean(out)
    return jnp.mean(jnp.square(out - batch["y"])), {"key": key, "mean": mean}


def run(directory=None, pause=0.0, **options):
    """The result, and the rounds that this call ran itself."""
    key = jax.random.key(0)
    x, y, w = (jax.random.normal(jax.random.fold_in(key, i), s) for i, s in enumerate([(5, 8, 6), (5, 8, 4), (6, 4)]))
    params = {"w": w, "b": jnp.zeros(4, jnp.bfloat16)}
    ran = []

    def metrics(params, model_state):
        ran.append(len(ran))
        time.sleep(pause)
        return {"mean": model_state["mean"]}

    settings = {"optimizer": OPTIMIZER, "rounds": ROUNDS, "steps": 3, "retrain": RETRAIN, "progress": False} | options
    spec = jc.assign(params, {"w": jc.Chain(jc.Sparse(0.3), jc.Quantized(jc.Binary()))})
    solver = jc.ADMM(spec, rho=0.1, growth=1.2)
    noise = {"key": jax.random.key(1), "mean": jnp.float32(0)}
    result = jc.compress(
        loss, params, {"x": x, "y": y}, solver, model_state=noise, metrics=metrics, directory=directory, **settings
    )
    return result, len(ran)


def digest(result) -> str:
    """Of all bytes that a run finds, and of all it records but the time it took."""
    found = hashlib.sha256()
    key = jax.random.key_data(result.model_state["key"])
    for leaf in jax.tree.leaves((result.params, result.landed, result.model_state["mean"], key)):
        found.update(jax.device_get(leaf).tobytes())
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in result.history]
    found.update(json.dumps(history, sort_keys=True).encode())
    return found.hexdigest()


if __name__ == "__main__":
    result, ran = run(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0, resume=True)
    print(digest(result))
    print(ran)
