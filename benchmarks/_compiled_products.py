"""One product with a packed matrix beside the dense one, and beside what PyTorch and ONNX Runtime make of it.

Every program runs in a process of its own, on as many cores as are asked for, and they take turns. A turn is many
calls in a row, after as many uncounted, so that caches and threads are as they are in use: what one call costs its
user, dispatch and all, which is some 4 us of each of JAX's. Of the packed forms the one is shown that is fastest here;
``forms`` has all of them.
"""

import functools
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks._timing import in_turns_apart, pin, ratio

TURN_S = 0.05  # about what a dense product takes in a turn: what is first called finds the caches cold
STRUCTURES = {
    "strips of 128, 10 %": ("strips", 128, 0.1),
    "strips of 64, 10 %": ("strips", 64, 0.1),
    "strips of 32, 10 %": ("strips", 32, 0.1),
    "strips of 64, 20 %": ("strips", 64, 0.2),
    "32 by 32 blocks, 10 %": ("blocks", 32, 0.1),
    "unstructured, 10 %": ("elements", 1, 0.1),
    "unstructured, 2 %": ("elements", 1, 0.02),
    "circulant blocks of 16": ("circulant", 16, 1.0),
}
Case = tuple[tuple[int, int], str, int]  # shape, structure, rows
CASES: Sequence[Case] = (
    *(((1024, 1024), structure, rows) for structure in STRUCTURES for rows in (1, 64)),
    *(
        (shape, structure, rows)
        for shape in ((768, 3072), (384, 1536), (3072, 1024))
        for structure in ("strips of 64, 10 %", "32 by 32 blocks, 10 %")
        for rows in (1, 32)
    ),
)
PEERS = ("XLA dense", "PyTorch dense", "PyTorch CSR", "PyTorch BSR", "ONNX Runtime", "ONNX Runtime int8")


def measure(
    repeats: int, cores: int = 1, cases: Sequence[Case] = CASES, peers: tuple[str, ...] = PEERS
) -> tuple[dict[str, Any], Table]:
    """Microseconds of the fastest packed form, and the same as a share of each peer's."""
    table = Table("matrix", "structure", "rows", "µs", *(f"of {peer}" for peer in peers), "form")
    table.title = f"products with a packed matrix, cores: {cores}; time as a share of the peer's"
    found = []
    for case in cases:
        row = _compared(*case, peers, cores, repeats)
        found.append(row)
        shares = (f"{row['of'][peer]:.2f}" if peer in row["of"] else "" for peer in peers)
        shape = "×".join(map(str, row["shape"]))
        table.add_row(shape, row["structure"], str(row["rows"]), f"{row['us']:.0f}", *shares, row["form"])
    return {"cores": cores, "rows": found}, table


def _compared(shape, structure, rows, peers, cores, repeats) -> dict[str, Any]:
    programs: dict[str, Callable] = {
        peer: functools.partial(_PEERS[peer], shape, structure, rows, cores)
        for peer in peers
        if peer != "PyTorch BSR" or STRUCTURES[structure][0] == "blocks"
    }
    forms = [form.describe() for form in _candidates(shape, structure, rows)]
    for number, form in enumerate(forms):
        programs[form] = functools.partial(_packed, shape, structure, rows, cores, number)
    times, count = in_turns_apart(programs, repeats, warm=True), calls(shape, rows)
    best = min(forms, key=lambda form: times[form].median)
    return {
        "shape": shape,
        "structure": structure,
        "rows": rows,
        "form": best,
        "us": 1e6 * times[best].median / count,
        "of": {peer: ratio(times[best], times[peer]) for peer in programs if peer not in forms},
        "forms": {form: 1e6 * times[form].median / count for form in forms},
        "peers": {peer: 1e6 * times[peer].median / count for peer in programs if peer not in forms},
    }


def matrix(shape: tuple[int, int], structure: str) -> np.ndarray:
    """Normal weights with this structure, ``[depth, columns]``, the same at every call."""
    (depth, columns), (kind, side, density) = shape, STRUCTURES[structure]
    rng = np.random.default_rng(0)
    weights = rng.normal(size=shape).astype(np.float32)
    if kind == "circulant":
        first = weights.reshape(depth // side, side, columns // side, side)[:, 0]
        turned = np.stack([np.roll(first, shift, axis=-1) for shift in range(side)], axis=1)
        return turned.reshape(shape)
    grid = {
        "strips": (depth, columns // side),
        "blocks": (depth // side, columns // side),
        "elements": (depth, columns),
    }[kind]
    ranks = rng.random(grid)
    # Of strips each keeps as many inputs; blocks and elements are kept wherever they fall.
    ranks = ranks.argsort(axis=0).argsort(axis=0) if kind == "strips" else ranks.argsort(axis=None).argsort()
    keep = ranks.reshape(grid) < round(density * (depth if kind == "strips" else ranks.size))
    return weights * np.kron(keep, np.ones((depth // grid[0], columns // grid[1]), np.float32))


def inputs(shape: tuple[int, int], rows: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, shape[0])).astype(np.float32)


def _candidates(shape, structure, rows):
    from jaxcomp.compiler.formats import candidates
    from jaxcomp.compiler.formats._dense import Dense

    weights = matrix(shape, structure)
    return candidates(weights, rows) or [Dense(weights)]  # none is expected to be faster


def calls(shape: tuple[int, int], rows: int) -> int:
    """How many a turn has."""
    return max(10, round(TURN_S / (1e-5 + 1e-11 * shape[0] * shape[1] * (rows + 4))))


def repeated(call: Callable[[], Any], count: int, finish: Callable[[Any], Any] = lambda y: y) -> Callable[[], Any]:
    def run():
        for _ in range(count):
            y = call()
        return finish(y)

    return run


def jitted(form, shape, rows) -> Callable[[], Any]:
    import jax

    form, x = jax.device_put(form), jax.device_put(inputs(shape, rows))
    program = jax.jit(lambda form, x: form(x))
    return repeated(lambda: program(form, x), calls(shape, rows), jax.block_until_ready)


def _packed(shape, structure, rows, cores, number) -> Callable[[], Any]:
    pin(cores)
    return jitted(_candidates(shape, structure, rows)[number], shape, rows)


def _xla(shape, structure, rows, cores) -> Callable[[], Any]:
    pin(cores)
    from jaxcomp.compiler.formats._dense import Dense

    return jitted(Dense(matrix(shape, structure)), shape, rows)


def _torch(kind: str, shape, structure, rows, cores) -> Callable[[], Any]:
    """``weights @ x``, outputs by inputs: PyTorch multiplies sparse matrices from the left alone."""
    pin(cores)
    import torch

    torch.set_num_threads(cores)
    warnings.filterwarnings("ignore", message="Sparse .* support is in beta")
    weights, x = torch.tensor(matrix(shape, structure).T.copy()), torch.tensor(inputs(shape, rows).T.copy())
    if kind == "CSR":
        weights = weights.to_sparse_csr()
    elif kind == "BSR":
        weights = weights.to_sparse_bsr((STRUCTURES[structure][1],) * 2)
    elif kind == "dense":
        weights, x = x.T.contiguous(), weights.T.contiguous()  # rows first, as it is fastest
    with torch.inference_mode():
        call = torch.inference_mode()(lambda: weights @ x)
    return repeated(call, calls(shape, rows))


def onnx_session(quantized: bool, shape, structure, rows, cores) -> Callable[[], Any]:
    """With its inputs and outputs bound, so that nothing is copied."""
    pin(cores)
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    x, weights = inputs(shape, rows), matrix(shape, structure)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, s]) for n, s in zip("xy", shape, strict=True)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = cores, 1
    options.log_severity_level = 3
    logging.disable(logging.WARNING)  # it asks for a preparation that a single product has no use for
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "dense.onnx")
        onnx.save(model, path)
        if quantized:
            source, path = path, os.path.join(folder, "int8.onnx")
            quantize_dynamic(source, path, weight_type=QuantType.QInt8)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    x, y = (onnxruntime.OrtValue.ortvalue_from_numpy(z) for z in (x, np.zeros((rows, shape[1]), np.float32)))
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    return repeated(lambda: session.run_with_iobinding(binding), calls(shape, rows))


_PEERS: dict[str, Callable[..., Callable[[], Any]]] = {
    "XLA dense": _xla,
    "PyTorch dense": functools.partial(_torch, "dense"),
    "PyTorch CSR": functools.partial(_torch, "CSR"),
    "PyTorch BSR": functools.partial(_torch, "BSR"),
    "ONNX Runtime": functools.partial(onnx_session, False),
    "ONNX Runtime int8": functools.partial(onnx_session, True),
}
