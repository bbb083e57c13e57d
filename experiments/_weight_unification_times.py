"""What LeNet-5 takes with blocks unified or pruned: compiled beside dense, and in ONNX Runtime with eight bits."""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxcomp as jc
from experiments._latency import Latency, measured
from experiments._models import FORMS, LeNet5

HAS_ONNX = all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime")))  # an extra, which nothing else here needs


@dataclass(frozen=True)
class Elsewhere:
    """The dense program of a network in ONNX Runtime.

    Attributes:
        batch: examples of a call.
        float_s, int8_s: with weights as they are, and in eight bits with activations rounded as they come.
    """

    batch: int
    float_s: float
    int8_s: float


def compiled(classes: int, params: Any, spec: jc.Spec, images: np.ndarray, pairs: int) -> Latency:
    """In turns with the dense network, in whichever form of the convolutions that is the faster dense."""
    each = [measured(_apply(classes, form), params, spec, images, pairs) for form in FORMS]
    return min(each, key=lambda one: one.dense_s)


def in_onnx(classes: int, params: Any, images: np.ndarray, rounds: int) -> Elsewhere:
    """Of both forms of the convolutions the faster, with floats and with eight bits."""
    with tempfile.TemporaryDirectory() as folder:
        models = [jc.compile(_apply(classes, form), params, {}, images, rounds=0) for form in FORMS]
        each = [jc.save_onnx(one, Path(folder) / "model.onnx", images, int8=True, rounds=rounds) for one in models]
    eight = [one.int8_s for one in each if one.int8_s is not None]  # dense layers take eight bits in both forms
    return Elsewhere(len(images), min(one.float_s for one in each), min(eight))


def told(found: Mapping[str, Sequence[Elsewhere]]) -> list[str]:
    """A line for every network and batch."""
    return [
        f"{name}, batch {one.batch}, dense in ONNX Runtime: {1e3 * one.float_s:.3f} ms, "
        f"in eight bits {1e3 * one.int8_s:.3f} ms ({one.float_s / one.int8_s:.2f}x)"
        for name, each in found.items()
        for one in each
    ]


def _apply(classes: int, form: str) -> Callable[[Any, Any], jax.Array]:
    model = LeNet5(classes, form=form)
    return lambda params, x: model.apply({"params": params}, x)
