"""What a device takes to project a leaf of 400 MB, in its shares of it: ``python -m tests.sharded.memory``."""

import os

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jaxcomp as jc
from tests.sharded import checks

SETS = {
    **{name: constraint for name, constraint in checks.SETS.items() if name != "a mask"},
    **checks.LARGE_SUMS,
    "few entries in a box": jc.BoxedBall(1000, "l0", -0.1, 0.2),
    "few entries of outputs in a box": jc.BoxedBall(10, "l0", -0.1, 0.2, view=jc.outputs()),
}

if __name__ == "__main__":
    for name, constraint in SETS.items():
        rows, both = (checks.memory(constraint, checks.ALONG[where]) for where in ("rows", "rows and columns"))
        print(f"{name}: {rows:.2f} by rows, {both:.2f} by both", flush=True)
