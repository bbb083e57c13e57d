"""A sweep that other processes may kill or join: ``python killable_sweep.py FOLDER LOG COUNT [PAUSE]``.

What it computes it appends to the log as it does, a line of process and configuration each. In the end it prints the
digest of all results.
"""

import functools
import hashlib
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jaxcomp.sweeps._configs import grid
from jaxcomp.sweeps._sweep import sweep

CHUNK = 3


def configs(count):
    return grid(i=range(count))


def expected(i):
    return {"square": np.float32(i) ** 2, "row": np.full(5, i, np.float32)}


def fn(note, i):
    seen = io_callback(note, jax.ShapeDtypeStruct((), np.int32), i, ordered=True)
    x = jnp.float32(seen)
    return {"square": x**2, "row": jnp.full(5, x)}


def _note(log, pause, i):
    os.write(log, f"{os.getpid()} {int(i)}\n".encode())
    time.sleep(pause)
    return np.int32(i)


def digest(results) -> str:
    found = hashlib.sha256()
    for result in results:
        for leaf in jax.tree.leaves(result):
            found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    folder, log, count = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT), int(sys.argv[3])
    pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    note = functools.partial(_note, log, pause)
    found = sweep(fn, configs(count), note, store=folder, chunk=CHUNK, version="1", progress=False)
    print(digest(found.results))
