"""Models pruned to a tenth in block columns, compiled, beside the same weights dense in JAX, PyTorch, ONNX Runtime.

Every program is built and run in a process of its own. A run is some calls, so that it takes milliseconds.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.table import Table

import jaxcomp as jc
from benchmarks._timing import in_turns_apart, ratio
from jaxcomp.compiler._onnx import eight_bits

DENSITY, ROWS = 0.1, 64  # a tenth of the columns of blocks of 64 outputs by all inputs
STEPS, FEATURES, UNITS = 20, 39, 1024  # of the recurrent network: those of RTMobile's first layer
WIDTH, HIDDEN = 768, 3072  # of the feed-forward part of a transformer of the base size
CALLS = {"gru": 2, "feed-forward": 20}

Arrays = dict[str, Any]


class Model(NamedTuple):
    """A function of weights and rows, the shapes of the weights, and that of a batch."""

    apply: Callable[[Arrays, Any], Any]
    shapes: dict[str, tuple[int, ...]]
    batch: Callable[[int], tuple[int, ...]]


def gru(p: Arrays, xs: Any, scan: Callable = lax.scan) -> Any:
    """The last state of a gated recurrent unit in the form of PyTorch: the reset gate is applied after the product."""

    def step(h: Any, x: Any) -> tuple[Any, None]:
        (r, z, n), (hr, hz, hn) = (jnp.split(each, 3, -1) for each in (x, h @ p["u"]))
        r, z = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz)
        return (1 - z) * jnp.tanh(n + r * hn) + z * h, None

    return scan(step, jnp.zeros((xs.shape[1], UNITS)), xs @ p["w"])[0]


def feed_forward(p: Arrays, x: Any) -> Any:
    return jax.nn.relu(x @ p["w"]) @ p["u"]


MODELS = {
    "gru": Model(gru, {"w": (FEATURES, 3 * UNITS), "u": (UNITS, 3 * UNITS)}, lambda rows: (STEPS, rows, FEATURES)),
    "feed-forward": Model(feed_forward, {"w": (WIDTH, HIDDEN), "u": (HIDDEN, WIDTH)}, lambda rows: (rows, WIDTH)),
}


def weights(name: str) -> tuple[Arrays, jc.Spec]:
    """Pruned, with their spec."""
    keys = zip(MODELS[name].shapes.items(), jax.random.split(jax.random.key(0)), strict=True)
    params = {path: jax.random.normal(key, shape) / shape[0] ** 0.5 for (path, shape), key in keys}
    spec = jc.assign(params, {path: _set(shape) for path, shape in MODELS[name].shapes.items()})
    return jc.project(spec, params), spec


def _set(shape: tuple[int, ...]) -> jc.Constraint:
    return jc.Sparse(DENSITY, jc.block_columns(ROWS, shape[0]))


def rows_of(name: str, rows: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=MODELS[name].batch(rows)).astype(np.float32)


def measure(repeats: int) -> tuple[dict[str, Any], Table]:
    """Median microseconds of a call, and how many times faster than dense JAX, turn by turn."""
    columns = "model", "rows", "program", "us a call", "faster than dense JAX"
    table, figures = Table(*columns, title="a tenth of the weights, in block columns"), {}
    for name in MODELS:
        for rows in (1, 32):
            times = in_turns_apart(_programs(name, rows), repeats)
            dense = times["JAX, dense"]
            figures[f"{name}, {rows}"] = {
                program: {"us": 1e6 * time.median / CALLS[name], "speedup": ratio(dense, time)}
                for program, time in times.items()
            }
            for program, row in figures[f"{name}, {rows}"].items():
                table.add_row(name, str(rows), program, f"{row['us']:,.0f}", f"{row['speedup']:.2f}x")
    return figures, table


def _programs(name: str, rows: int) -> dict[str, Callable[[], Callable[[], object]]]:
    programs = {"JAX, dense": _dense, "jaxcomp.compile": _compiled}
    if importlib.util.find_spec("torch"):
        programs |= {"PyTorch, dense": _torch, "PyTorch, sparse CSR": functools.partial(_torch, sparse=True)}
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("jax2onnx"):
        programs |= {"ONNX Runtime, dense": _onnx, "ONNX Runtime, int8": functools.partial(_onnx, int8=True)}
        programs |= {"ONNX Runtime, its GRU": _onnx_gru} if name == "gru" else {}
    return {program: functools.partial(_many, build, name, rows) for program, build in programs.items()}


def _many(build: Callable, name: str, rows: int) -> Callable[[], object]:
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
    x = torch.tensor(rows_of(name, rows))
    params = weights(name)[0]
    w, u = (torch.tensor(np.asarray(params[path])).T.contiguous() for path in "wu")
    if sparse:
        w, u = w.to_sparse_csr(), u.to_sparse_csr()
    if name == "feed-forward":
        return lambda: (u @ torch.relu(w @ x.T)).T
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


def _onnx(name: str, rows: int, int8: bool = False) -> Callable[[], object]:
    """As converted from JAX; a recurrence is written out, so that its products can be rounded."""
    from jax2onnx import to_onnx

    params, x = weights(name)[0], rows_of(name, rows)
    apply = functools.partial(gru, scan=_written_out) if name == "gru" else feed_forward
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
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda: session.run(None, {given.name: x})


def _written_out(step: Callable, carry: Any, xs: Any) -> tuple[Any, None]:
    for x in xs:
        carry, _ = step(carry, x)
    return carry, None
