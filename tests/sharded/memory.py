"""What a device takes to project a leaf of 400 MB, in its shares of it: ``python -m tests.sharded.memory``."""

import os

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jaxcomp as jc
from tests.sharded import checks

SETS = {
    **{name: constraint for name, constraint in checks.SETS.items() if name != "a mask"},
    "uniform levels, one scale": jc.Quantized(jc.Uniform(4)),
    "uniform levels, a scale an output": jc.Quantized(jc.Uniform(4), jc.outputs()),
    "uniform levels, a scale a fragment": jc.Quantized(jc.Uniform(4), jc.fragments(8)),
    "ternary, one scale": jc.Quantized(jc.Ternary()),
    "diagonals": jc.Tied(jc.diagonals(8)),
    "l2 ball": jc.L2Ball(1.0),
    "l1 ball": jc.L1Ball(1.0),
    "l1 balls of outputs": jc.L1Ball(1.0, jc.outputs()),
    "simplex": jc.Simplex(),
}

if __name__ == "__main__":
    for name, constraint in SETS.items():
        rows, both = (checks.memory(constraint, checks.ALONG[where]) for where in ("rows", "rows and columns"))
        print(f"{name}: {rows:.2f} by rows, {both:.2f} by both", flush=True)
