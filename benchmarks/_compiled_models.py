"""Models pruned to a tenth, compiled, beside the same weights dense in JAX, PyTorch and ONNX Runtime.

Every program is built and run in a process of its own, on as many cores as are said. A run is some calls, so that it
takes milliseconds.
"""

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.table import Table

import jaxcomp as jc
from benchmarks._timing import in_turns_apart, pin, ratio
from jaxcomp.compiler._onnx import eight_bits

DENSITY, STRIP, SIDE = 0.1, 64, 32  # a tenth of the columns of blocks of 64 outputs by all inputs, or of square blocks
STEPS, FEATURES, UNITS = 20, 39, 1024  # of the recurrent network: those of RTMobile's first layer
WIDTH, HIDDEN = 768, 3072  # of the feed-forward part of a transformer of the base size
LAYERS = 8  # of the network of square blocks, each with weights of its own, of UNITS by UNITS
CALLS = {"gru": 2, "feed-forward": 20, "layers of blocks": 5}
CASES = (  # model, rows, cores
    *((name, rows, cores) for name in ("gru", "feed-forward") for rows in (1, 32) for cores in (1, 2)),
    *(("layers of blocks", rows, cores) for rows in (1, 64) for cores in (1, 2)),
)

Arrays = dict[str, Any]


class Model(NamedTuple):
    """A function of weights and rows, the shapes of the weights, that of a batch, and what a matrix is pruned to."""

    apply: Callable[[Arrays, Any], Any]
    shapes: dict[str, tuple[int, ...]]
    batch: Callable[[int], tuple[int, ...]]
    view: Callable[[int], jc.View]  # of its inputs


def gru(p: Arrays, xs: Any, scan: Callable = lax.scan) -> Any:
    """The last state of a gated recurrent unit in the form of PyTorch: the reset gate is applied after the product."""

    def step(h: Any, x: Any) -> tuple[Any, None]:
        (r, z, n), (hr, hz, hn) = (jnp.split(each, 3, -1) for each in (x, h @ p["u"]))
        r, z = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz)
        return (1 - z) * jnp.tanh(n + r * hn) + z * h, None

    return scan(step, jnp.zeros((xs.shape[1], UNITS)), xs @ p["w"])[0]


def perceptron(p: Arrays, x: Any) -> Any:
    *hidden, last = (p[path] for path in sorted(p))
    for w in hidden:
        x = jax.nn.relu(x @ w)
    return x @ last


def _strips(depth: int) -> jc.View:
    return jc.block_columns(STRIP, depth)


MODELS = {
    "gru": Model(
        gru, {"w": (FEATURES, 3 * UNITS), "u": (UNITS, 3 * UNITS)}, lambda rows: (STEPS, rows, FEATURES), _strips
    ),
    "feed-forward": Model(
        perceptron, {"w0": (WIDTH, HIDDEN), "w1": (HIDDEN, WIDTH)}, lambda rows: (rows, WIDTH), _strips
    ),
    "layers of blocks": Model(
        perceptron,
        {f"w{layer}": (UNITS, UNITS) for layer in range(LAYERS)},
        lambda rows: (rows, UNITS),
        lambda depth: jc.blocks(SIDE, SIDE),
    ),
}


def weights(name: str) -> tuple[Arrays, jc.Spec]:
    """Pruned, with their spec."""
    shapes, view = MODELS[name].shapes, MODELS[name].view
    keys = zip(shapes.items(), jax.random.split(jax.random.key(0), len(shapes)), strict=True)
    params = {path: jax.random.normal(key, shape) / shape[0] ** 0.5 for (path, shape), key in keys}
    spec = jc.assign(params, {path: jc.Sparse(DENSITY, view(shape[0])) for path, shape in shapes.items()})
    return jc.project(spec, params), spec


def rows_of(name: str, rows: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=MODELS[name].batch(rows)).astype(np.float32)


def measure(repeats: int) -> tuple[dict[str, Any], Table]:
    """Median microseconds of a call, and how many times faster than dense JAX and ONNX Runtime, turn by turn."""
    columns = "model", "rows", "cores", "program", "us a call", "faster than dense JAX", "than ONNX Runtime"
    table, figures = Table(*columns, title="a tenth of the weights, in block columns and in blocks"), {}
    for name, rows, cores in CASES:
        times = in_turns_apart(_programs(name, rows, cores), repeats, warm=True)
        peers = {"speedup": "JAX, dense", "of_onnx": "ONNX Runtime, dense"}
        found = figures[f"{name}, {rows} rows, {cores} cores"] = {
            program: {"us": 1e6 * time.median / CALLS[name]}
            | {key: ratio(times[peer], time) for key, peer in peers.items() if peer in times}
            for program, time in times.items()
        }
        for program, row in found.items():
            faster = (f"{row[key]:.2f}x" if key in row else "" for key in peers)
            table.add_row(name, str(rows), str(cores), program, f"{row['us']:,.0f}", *faster)
        table.add_section()
    return figures, table


def _programs(name: str, rows: int, cores: int) -> dict[str, Callable[[], Callable[[], object]]]:
    programs = {"JAX, dense": _dense, "jaxcomp.compile": _compiled}
    if importlib.util.find_spec("torch"):
        programs |= {"PyTorch, dense": _torch, "PyTorch, sparse CSR": functools.partial(_torch, sparse=True)}
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("jax2onnx"):
        programs |= {"ONNX Runtime, dense": _onnx, "ONNX Runtime, int8": functools.partial(_onnx, int8=True)}
        programs |= {"ONNX Runtime, its GRU": _onnx_gru} if name == "gru" else {}
    return {program: functools.partial(_many, build, name, rows, cores) for program, build in programs.items()}


def _many(build: Callable, name: str, rows: int, cores: int) -> Callable[[], object]:
    pin(cores)
    call = build(name, rows)

    def run() -> object:
        for _ in range(CALLS[name]):
            result = call()
        return jax.block_until_ready(result)

    return run


def _dense(name: str, rows: int) -> Callable[[], object]:
    params, x = weights(name)[0], jnp.asarray(rows_of(name, rows))
    call = jax.jit(MODELS[name].apply)
    return lambda: call(params, x)


def _compiled(name: str, rows: int) -> Callable[[], object]:
    (params, spec), x = weights(name), jnp.asarray(rows_of(name, rows))
    model = jc.compile(MODELS[name].apply, params, spec, x)
    np.testing.assert_allclose(model(x), MODELS[name].apply(params, x), rtol=1e-4, atol=1e-4)
    return lambda: model(x)


def _torch(name: str, rows: int, sparse: bool = False) -> Callable[[], object]:
    import torch

    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", message="Sparse .* support is in beta")
    x = torch.tensor(rows_of(name, rows))
    arrays = {path: torch.tensor(np.asarray(each)).T.contiguous() for path, each in weights(name)[0].items()}
    if sparse:
        arrays = {path: each.to_sparse_csr() for path, each in arrays.items()}
    if name != "gru":
        return functools.partial(_torch_perceptron, list(arrays.values()), x)
    w, u = arrays["w"], arrays["u"]
    if not sparse:
        cell = torch.nn.GRU(FEATURES, UNITS, bias=False)
        cell.weight_ih_l0.copy_(w)
        cell.weight_hh_l0.copy_(u)
        return lambda: cell(x)[1]

    def run():
        h, inner = torch.zeros(UNITS, rows), w @ x.reshape(-1, FEATURES).T
        for step in range(STEPS):
            (r, z, n), (hr, hz, hn) = inner[:, step * rows : (step + 1) * rows].chunk(3), (u @ h).chunk(3)
            r, z = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
            h = (1 - z) * torch.tanh(n + r * hn) + z * h
        return h.T

    return run


def _torch_perceptron(layers: list[Any], x: Any) -> Any:
    h = x.T
    for w in layers[:-1]:
        h = (w @ h).relu_()
    return (layers[-1] @ h).T


def _onnx(name: str, rows: int, int8: bool = False) -> Callable[[], object]:
    """As converted from JAX; a recurrence is written out, so that its products can be rounded."""
    from jax2onnx import to_onnx

    params, x = weights(name)[0], rows_of(name, rows)
    apply = functools.partial(gru, scan=_written_out) if name == "gru" else MODELS[name].apply
    program = to_onnx(lambda x: apply(params, x), [jax.ShapeDtypeStruct(x.shape, x.dtype)]).SerializeToString()
    if int8:
        program = eight_bits(program)
    return _session(program, x)


def _onnx_gru(name: str, rows: int) -> Callable[[], object]:
    """The operator that ONNX has for it, whose gates stand in another order."""
    from onnx import TensorProto, helper, numpy_helper

    x = rows_of(name, rows)
    arrays = {}
    for path, each in weights(name)[0].items():
        r, z, n = np.split(np.asarray(each).T, 3)
        arrays[path] = np.concatenate([z, r, n])[None]
    node = helper.make_node("GRU", ["x", "w", "u"], ["", "y"], hidden_size=UNITS, linear_before_reset=1)
    given, taken = (
        helper.make_tensor_value_info(each, TensorProto.FLOAT, shape)
        for each, shape in (("x", x.shape), ("y", (1, rows, UNITS)))
    )
    graph = helper.make_graph(
        [node], "gru", [given], [taken], [numpy_helper.from_array(each, path) for path, each in arrays.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return _session(model.SerializeToString(), x)


def _session(program: bytes, x: np.ndarray) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda: session.run(None, {given.name: x})


def _written_out(step: Callable, carry: Any, xs: Any) -> tuple[Any, None]:
    for x in xs:
        carry, _ = step(carry, x)
    return carry, None
