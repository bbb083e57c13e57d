"""A way out of JAX: compiled models for ONNX Runtime, with int8 weights where that is faster there."""

import contextlib
import dataclasses
import functools
import importlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jaxcomp.compiler._compiled import Compiled
from jaxcomp.compiler._rewrite import Rewriter, Value
from jaxcomp.compiler._tune import in_turns, typical


@dataclasses.dataclass(frozen=True)
class OnnxReport:
    """What was written, and what was measured of it in ONNX Runtime.

    Attributes:
        bytes: of the file.
        int8: whether weights were written in eight bits.
        float_s: a call with weights as they are.
        int8_s: a call with weights in eight bits and activations rounded to as many on the way; ``None`` where it was
            not asked for, or where no product took it.
        difference: the largest of an output from what the compiled model gives.
    """

    bytes: int
    int8: bool
    float_s: float
    int8_s: float | None
    difference: float


def save_onnx(model: Compiled, path: Path | str, *inputs: Any, int8: bool = False, rounds: int = 9) -> OnnxReport:
    """Write a compiled model as an ONNX file, weights included, and run it in ONNX Runtime.

    Needs the packages of ``pip install 'jaxcomp[onnx]'``. What ONNX cannot say (a scan in reverse, a call back into
    Python) is an error that says so; ``jax.export.export(jax.jit(model))`` takes everything.

    Args:
        model: what `jaxcomp.compile` gave.
        path: the file.
        inputs: arrays to run it on.
        int8: also make the program whose weights are rounded to eight bits, a scale per output, and whose activations
            are rounded as they come, and write that one if it runs faster. It does not give the same outputs.
        rounds: how often both are run, in turns.

    Raises:
        ValueError: ONNX has no such operation; the message names it.
        ImportError: a package is missing.
    """
    convert, runtime = _needed("jax2onnx"), _needed("onnxruntime")
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.tree.leaves(inputs)]
    jax.eval_shape(model, *inputs)  # raises where they are not those that it was compiled for
    rewriter = Rewriter({}, lambda leaves: False, portable=True)

    def run(*flat: Any) -> list[Any]:
        values = map(Value, [*jax.tree.leaves(model.params), *flat])
        return [value.traced for value in rewriter.run(model.program.jaxpr, [*values], {})]

    try:
        with _quiet():
            plain = convert.to_onnx(run, shapes).SerializeToString()
    except Exception as error:  # of whatever kind: what goes wrong in another's converter is not ours to list
        raise ValueError(
            f"ONNX cannot say all of this model: {error}; jax.export.export(jax.jit(model)) can"
        ) from error
    rounded = eight_bits(plain) if int8 else b""
    programs = [plain, *([rounded] if b"DynamicQuantizeLinear" in rounded else [])]
    sessions = [_session(runtime, program) for program in programs]
    fed = {each.name: np.asarray(x) for each, x in zip(sessions[0].get_inputs(), jax.tree.leaves(inputs), strict=True)}
    runs = [functools.partial(session.run, None, fed) for session in sessions]
    seconds = typical(in_turns(runs, rounds))
    best = int(np.argmin(seconds))
    Path(path).write_bytes(programs[best])
    difference = max(
        float(np.max(np.abs(found - np.asarray(want)), initial=0))
        for found, want in zip(sessions[best].run(None, fed), jax.tree.leaves(model(*inputs)), strict=True)
    )
    return OnnxReport(len(programs[best]), best == 1, seconds[0], (*seconds, None)[1], difference)


def eight_bits(program: bytes) -> bytes:
    """An ONNX program with the weights of products in eight bits; activations are rounded as they come."""
    onnx, quantization = _needed("onnx"), _needed("onnxruntime.quantization")
    model = onnx.load_from_string(program)
    ranks = {each.name: len(each.dims) for each in model.graph.initializer}
    stacked = []
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node {number}"
        # ONNX Runtime rounds the operands of MatMul, not those of a Gemm whose addend counts for nothing.
        said = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Gemm" and said.get("beta") == 0 and not said.keys() & {"transA", "transB"}:
            node.op_type = "MatMul"
            del node.attribute[:], node.input[2:]
        # What it makes of products with a stack of matrices it refuses to run.
        if node.op_type == "MatMul" and any(ranks.get(name, 2) > 2 for name in node.input):
            stacked.append(node.name)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "rounded.onnx"
        kind = quantization.QuantType.QInt8
        quantization.quantize_dynamic(model, file, weight_type=kind, per_channel=True, nodes_to_exclude=stacked)
        return file.read_bytes()


def _session(runtime: ModuleType, program: bytes) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # it warns of every constant that it finds unused
    return runtime.InferenceSession(program, options, providers=["CPUExecutionProvider"])


def _needed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"writing ONNX needs {package}: pip install 'jaxcomp[onnx]' ({error})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converters tell of what they fold and skip: nothing of it concerns whoever calls them here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
