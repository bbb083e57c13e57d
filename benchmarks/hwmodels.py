"""Evaluations of hardware models a second: one layer on one design, under jit and vmap, beside simulators.

Every device of `jaxcomp.hwmodels` is varied in all its numbers at once: a batch of designs, each run on the five
convolutions of AlexNet, latency and energy of every layer on every design. Compilation is timed apart. SCALE-Sim and
ZigZag take a layer at a time, the same one, on their own examples of hardware; ZigZag also searches a mapping. They
need interpreters of their own: ``pip install scalesim==3.0.0 'numpy<2'`` and ``pip install zigzag-dse==3.9.1 six`` in
environments named by ``--scalesim PYTHON`` and ``--zigzag PYTHON``; a peer without one is left out.
"""

import functools
import inspect
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks._timing import in_turns
from jaxcomp import Product, Workload, hwmodels
from jaxcomp.hwmodels import Device, Stored

DESIGNS = 4096
LAYERS = (  # inputs, outputs, kernel, pixels a side, stride
    (3, 64, 11, 55, 4),
    (64, 192, 5, 27, 1),
    (192, 384, 3, 13, 1),
    (384, 256, 3, 13, 1),
    (256, 256, 3, 13, 1),
)
PEER = {"name": "conv3", "inside": 15, "kernel": 3, "inputs": 192, "outputs": 384, "stride": 1}


def measure(repeats: int, scalesim: str | None = None, zigzag: str | None = None) -> tuple[dict[str, Any], Table]:
    """Layer-design evaluations a second, seconds of compilation, and how many times faster than each simulator."""
    table = Table(
        "model", "evaluations/s", "compilation s", title=f"{DESIGNS} designs x {len(LAYERS)} layers, all cores"
    )
    devices = {name: _measured(device, repeats) for name, device in examples().items()}
    for name, row in devices.items():
        table.add_row(name, f"{row['per_second']:.3g}", f"{row['compile_s']:.1f}")
    peers = {}
    for name, python in (("SCALE-Sim", scalesim), ("ZigZag", zigzag)):
        if python is None:
            table.add_row(name, f"left out: give --{name.replace('-', '').lower()} PYTHON", "")
            continue
        script = Path(__file__).with_name(f"_{name.replace('-', '').lower()}.py")
        run = subprocess.run([python, script, json.dumps(PEER)], capture_output=True, text=True, check=True)
        peers[name] = json.loads(run.stdout) | {"layer": PEER}
        slowest = min(row["per_second"] for row in devices.values())
        peers[name]["slowest_device_is_faster_by"] = slowest * peers[name]["seconds"]
        faster = f"(the slowest device above: {peers[name]['slowest_device_is_faster_by']:.1g} times)"
        table.add_row(name, f"{1 / peers[name]['seconds']:.3g} {faster}", "-")
    return {"devices": devices, "peers": peers}, table


def examples() -> dict[str, Device]:
    """One of every device: as it is by default, or its first preset."""
    found = {}
    for name, kind in vars(hwmodels).items():
        if not (inspect.isclass(kind) and issubclass(kind, Device) and kind is not Device):
            continue
        presets = [kind, *(getattr(kind, m) for m, x in vars(kind).items() if isinstance(x, classmethod))]
        found[name] = next(make() for make in presets if _needs_nothing(make))
    return found


def _needs_nothing(make: Any) -> bool:
    parameters = inspect.signature(make).parameters.values()
    return all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in parameters)


def layers() -> Workload:
    products = []
    for i, (inputs, outputs, kernel, out, stride) in enumerate(LAYERS, 1):
        inside = (out - 1) * stride + kernel
        sides = (kernel, kernel, inside, inside, out, out)
        products.append(Product(f"conv{i}", f"conv{i}/kernel", 1, 1, inputs, outputs, *sides, stride))
    return Workload(tuple(products))


def _measured(device: Device, repeats: int) -> dict[str, float]:
    rng, products = np.random.default_rng(0), layers().stacked
    designs = jax.tree.map(lambda x: _around(jnp.asarray(x, float), rng), device)
    bits = jnp.asarray(rng.integers(2, 9, DESIGNS), float)

    def costs(device, bits, products):  # products as an argument: as constants they would be folded at length
        cost = device.product(products, Stored(weight_bits=bits))
        return cost.latency_s, cost.energy_j

    start = time.perf_counter()
    compiled = jax.jit(jax.vmap(costs, (0, 0, None))).lower(designs, bits, products).compile()
    compile_s = time.perf_counter() - start
    run = functools.partial(_run, compiled, designs, bits, products)
    seconds = statistics.median(in_turns({"run": run}, repeats)["run"].wall)
    return {"per_second": DESIGNS * len(LAYERS) / seconds, "compile_s": compile_s}


def _around(x: jax.Array, rng: np.random.Generator) -> jax.Array:
    """A number times factors from a half to twice, one a design."""
    factors = 2 ** rng.uniform(-1, 1, (DESIGNS, *(1,) * x.ndim))
    return jnp.asarray(factors, x.dtype) * x[None]


def _run(compiled: Any, *arguments: Any) -> None:
    jax.block_until_ready(compiled(*arguments))
