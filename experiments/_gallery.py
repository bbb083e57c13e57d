"""``python -m experiments gallery``: one weight matrix and one convolution, as every set of the library leaves them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console
from rich.table import Table

import jaxcomp as jc
from experiments import _data, _plots
from experiments._models import Conv, max_pool2

_BATCH, _STEPS, _RATE = 64, 600, 2e-3
_COLUMNS = jc.Sparse(0.5, jc.block_columns(8, 8))

MATRIX = {  # 24 outputs by 32 inputs
    "every weight, 25 %": jc.Sparse(0.25),
    "outputs": jc.Sparse(0.5, jc.outputs()),
    "inputs, whole arrays of 8": jc.Sparse(0.4, jc.inputs(), multiple=8),
    "blocks 4x4": jc.Sparse(0.25, jc.blocks(4, 4)),
    "columns of blocks 8x8": _COLUMNS,
    "the same, free counts": jc.Sparse(0.5, jc.block_columns(8, 8, free=True)),
    "rows of blocks 8x8": jc.Sparse(0.5, jc.block_rows(8, 8)),
    "rows and columns of blocks": jc.Chain(_COLUMNS, jc.Sparse(0.5, jc.block_rows(8, 8))),
    "2:4": jc.Sparse(0.5, jc.chunks(4)),
    "gather-scatter, 8 banks": jc.GatherScatter(0.25, 8),
    "gather-scatter, vertical": jc.GatherScatter(0.25, 8, rows=8),
    "polarized, fragments of 8": jc.Polarized(jc.fragments(8)),
    "signs that are given": jc.FixedSign(view=jc.fragments(8)),
    "polarized and pruned": jc.Chain(jc.Polarized(jc.fragments(8)), jc.Sparse(0.5, jc.outputs())),
    "block-circulant, 8x8": jc.Tied(jc.diagonals(8)),
    "one magnitude a 4x4 block": jc.Tied(jc.blocks(4, 4), signs="free"),
    "a half unified, a quarter pruned": jc.Unified(0.5, 0.25, jc.blocks(4, 4)),
    "binary": jc.Quantized(jc.Binary(), jc.outputs()),
    "ternary": jc.Quantized(jc.Ternary()),
    "uniform, 3 bits": jc.Quantized(jc.Uniform(3)),
    "uniform between two ends, 3 bits": jc.Affine(3, jc.outputs()),
    "powers of two, 3 bits": jc.Quantized(jc.PowerOfTwo(3)),
    "sums of powers of two, 4 bits": jc.Quantized(jc.AdditivePowersOfTwo(4)),
    "4 conductances, no zero": jc.Quantized(jc.Conductances(0.1, 1.0, 4)),
    "values that are given": jc.Codebook((-0.4, -0.1, 0.0, 0.1, 0.4)),
    "rank 4": jc.LowRank(4),
    "absolute sum at most 30": jc.L1Ball(30.0),
    "pruned, then 3 bits": jc.Chain(jc.Sparse(0.25), jc.Quantized(jc.Uniform(3, zero=False))),
}
CONVOLUTION = {  # 3x3, 8 channels, 16 filters
    "filters": jc.Sparse(0.5, jc.outputs()),
    "channels": jc.Sparse(0.5, jc.inputs()),
    "columns of the matrix": jc.Sparse(0.5, jc.inputs(taps=True)),
    "kernels (connectivity)": jc.Sparse(0.25, jc.kernels()),
    "8 patterns of 4 weights": jc.Patterned(),
    "4 crosses, half of the kernels": jc.Patterned(jc.CROSSES, density=0.5),
    "punched blocks of 8 filters, 4 channels": jc.Sparse(4 / 9, jc.punched(8, 4)),
    "every weight, 25 %": jc.Sparse(0.25),
    "polarized, fragments of 9": jc.Polarized(jc.fragments(9)),
    "ternary filters": jc.Quantized(jc.Ternary(), jc.outputs()),
}


class Network(nn.Module):
    """Small enough that every weight of a leaf can be seen."""

    @nn.compact
    def __call__(self, x):
        x = max_pool2(nn.relu(Conv(8, (3, 3), name="conv1")(x)))
        x = max_pool2(nn.relu(Conv(16, (3, 3), name="conv2")(x)))
        x = nn.relu(nn.Dense(32, name="fc1")(x.reshape(len(x), -1)))
        x = nn.relu(nn.Dense(24, name="fc2")(x))
        return nn.Dense(10, name="fc3")(x)


def weights() -> tuple[jax.Array, jax.Array]:
    """A matrix ``[32, 24]`` and a convolution ``[3, 3, 8, 16]`` of a network trained on the digits."""
    train, model = _data.load().train, Network()
    params = model.init(jax.random.key(0), train.image[:1])["params"]

    def loss(params, batch):
        logits = model.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    batches = jc.shuffled((jnp.asarray(train.image), jnp.asarray(train.label)), _BATCH, _STEPS)
    options = dict(optimizer=optax.adam(_RATE), rounds=1, steps=_STEPS)
    trained = jc.solve(loss, params, batches, jc.ADMM({}), **options).params
    return trained["fc2"]["kernel"], trained["conv2"]["kernel"]


def draw(folder: Path, console: Console) -> None:
    """Write ``gallery-matrix.png`` and ``gallery-convolution.png``, and print the same as a table."""
    table = Table("leaf", "set", "density %", "error %", "bits a weight", "nearest", title="gallery")
    matrix, convolution = weights()
    for name, leaf, sets in (("matrix", matrix, MATRIX), ("convolution", convolution, CONVOLUTION)):
        panels = {"dense": (np.asarray(leaf), "100%, error 0%")}
        for title, constraint in sets.items():
            fitted = constraint.fit(leaf)
            fitted.check(leaf)
            near, stored = jax.jit(lambda c, x: (c.project(x), c.footprint(c.project(x))))(fitted, leaf)
            density = float(stored.nonzeros) / leaf.size
            error = float(jnp.linalg.norm(leaf - near) / jnp.linalg.norm(leaf))
            panels[title] = np.asarray(near), f"{density:.0%}, error {error:.0%}"
            figures = f"{100 * density:.0f}", f"{100 * error:.0f}", f"{float(stored.bits) / leaf.size:.1f}"
            table.add_row(name, title, *figures, "yes" if fitted.exact(leaf.shape) else "no")
        path = folder / f"gallery-{name}.png"
        _plots.gallery(path, panels)
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    table.caption = "error: distance to the dense leaf by its norm; bits count indices, scales and signs (dense: 32)"
    console.print(table)
