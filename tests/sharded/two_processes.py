"""One of two processes with four devices each: ``python -m tests.sharded.two_processes ADDRESS PROCESS FOLDER``.

It prints what is wrong with each check, as JSON.
"""

import json
import os
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np

import jaxcomp as jc
from jaxcomp.sweeps._configs import grid
from jaxcomp.sweeps._store import Store
from jaxcomp.sweeps._sweep import sweep
from tests.sharded import checks

CHECKS = (
    "elements along rows and columns are projected alike",
    "elements along columns are projected alike",
    "2:4 along rows and columns are projected alike",
    "ternary of leaf along rows and columns are projected alike to rounding",
    "long diagonals along rows are projected alike to rounding",
    "simplex along rows and columns are projected alike to rounding",
    "elements are not gathered",
    "ties far apart are kept in order of position",
    "leaves are ranked together",
    "solve keeps what is sharded so",
)


def member(x, density, seed):
    key = jax.random.fold_in(jax.random.key(0), seed)
    return {"kept": jnp.sum(jc.Sparse(density).project(x + jax.random.normal(key, x.shape)) ** 2)}


def members_are_shared_through_a_store(folder):
    configs, x = grid(density=[0.1, 0.3, 0.5], seed=[0, 1, 2, 3]), checks.leaf(0, (16, 16))
    with Store(folder) as store:
        found = sweep(member, configs, x, chunk=2, store=store, progress=False)
        expected = [float(member(x, **config)["kept"]) for config in configs]
        np.testing.assert_allclose([float(result["kept"]) for result in found.results], expected, 1e-6)


def checkpoints_are_written_by_all(folder):
    checks.compress_keeps_what_is_sharded_so(folder)


if __name__ == "__main__":
    address, process, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    wrong = checks.run(CHECKS)
    for check in (members_are_shared_through_a_store, checkpoints_are_written_by_all):
        try:
            check(folder / check.__name__)
            wrong[check.__name__] = ""
        except Exception:
            wrong[check.__name__] = traceback.format_exc()
    print(json.dumps(wrong))
