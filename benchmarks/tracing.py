"""What `jaxcomp.trace` takes beside one `jax.make_jaxpr` of the same network, which it does once itself.

Networks of flax, by the shapes of their parameters: nothing is computed. Each run traces a new function, as a first
call would; what JAX keeps of the parts of a program from run to run, it keeps for both. The last row has no library
around its operations, so that JAX has the least to do for each.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from rich.table import Table

import jaxcomp as jc
from benchmarks._timing import in_turns, ratio
from tests import networks

NETWORKS = {
    "ResNet-18": (networks.ResNet18(), networks.image(224)),
    "MobileNetV2": (networks.MobileNetV2(), networks.image(224)),
    "GRU": (networks.Recurrent(), jax.ShapeDtypeStruct((1, 100, 39), "float32")),
    "BERT-base": (networks.Bert(), networks.tokens(128)),
}
LAYERS = 400  # of the last row


def measure(repeats: int) -> tuple[dict[str, Any], Table]:
    """Median milliseconds, and the ratio of the two turn by turn."""
    columns = ("network", "products", "M MACs", "operations", "make_jaxpr ms", "trace ms", "ratio")
    table, figures = Table(*columns, title="tracing"), {}
    cases = {name: (network.apply, networks.variables(network, x), x) for name, (network, x) in NETWORKS.items()}
    square = jax.ShapeDtypeStruct((64, 64), "float32")
    cases["bare operations"] = (_bare, square, square)
    for name, (apply, params, x) in cases.items():
        programs = {
            "make_jaxpr": lambda f=apply, p=params, x=x: jax.make_jaxpr(_anew(f))(p, x),
            "trace": lambda f=apply, p=params, x=x: jc.trace(_anew(f), p, x),
        }
        times = in_turns(programs, repeats)
        workload = programs["trace"]()
        figures[name] = {
            "products": len(workload),
            "macs": workload.macs,
            "operations": len(programs["make_jaxpr"]().eqns),
            "make_jaxpr_ms": 1e3 * times["make_jaxpr"].median,
            "trace_ms": 1e3 * times["trace"].median,
            "ratio": ratio(times["trace"], times["make_jaxpr"]),
        }
        products, macs, operations, *milliseconds, by = figures[name].values()
        cells = (
            str(products),
            f"{macs / 1e6:.1f}",
            str(operations),
            *(f"{ms:.1f}" for ms in milliseconds),
            f"{by:.2f}",
        )
        table.add_row(name, *cells)
    return figures, table


def _anew(apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda params, x: apply(params, x)


def _bare(w: jax.Array, x: jax.Array) -> jax.Array:
    for _ in range(LAYERS):
        x = lax.add(x, lax.tanh(lax.dot(x, w)))
    return x
