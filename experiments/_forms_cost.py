"""What a network costs on ISAAC and on FORMS: arrays, area, time and energy, with input cycles that it really has."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from experiments._models import max_pool2
from jaxcomp import Crossbar, Device, Stored, Workload, effective_input_cycles, trace

ACTIVATION_BITS = 16


@dataclasses.dataclass(frozen=True)
class Silicon:
    """What one image costs, by name of the design; images go one after the other, a layer at a time.

    Attributes:
        arrays: crossbars that hold the weights.
        area_mm2: their shares of a tile.
        latency_s, energy_j: of one image.
    """

    arrays: int
    area_mm2: float
    latency_s: float
    energy_j: float

    @property
    def images_per_s_mm2(self) -> float:
        return 1 / (self.latency_s * self.area_mm2)


def workload(model: nn.Module, params: Any, image: np.ndarray) -> Workload:
    """The products of one image."""
    return trace(lambda params, x: model.apply({"params": params}, x), params, image[:1])


def designs(
    work: Workload, bits: float, fragments: tuple[int, ...], cycles: dict[int, np.ndarray]
) -> dict[str, Silicon]:
    """ISAAC at 16 and at `bits` bits, and FORMS without and with polarized weights.

    Args:
        work: of one image.
        bits: of a quantized weight.
        fragments: sizes to compare.
        cycles: for every size the mean effective input cycles of every product.
    """
    found = {
        "ISAAC, 16 bits": _cost(Crossbar.isaac(), work, 16.0),
        f"ISAAC, {bits:g} bits": _cost(Crossbar.isaac(), work, bits),
    }
    for m in fragments:
        share = jnp.asarray(cycles[m] / ACTIVATION_BITS, jnp.float32)
        for signs, name in ((2, "two arrays"), (1, "polarized")):
            device = dataclasses.replace(Crossbar.forms(m, signs), input_share=share)
            found[f"FORMS, {m} rows, {name}"] = _cost(device, work, bits)
    return found


def _cost(device: Device, work: Workload, bits: float) -> Silicon:
    stored = Stored(weight_bits=bits, activation_bits=float(ACTIVATION_BITS))
    arrays = int(jnp.sum(device.crossbars(work.stacked, stored)))
    cost = device.cost(work, stored)
    return Silicon(arrays, arrays * device.chip.array_area_mm2, float(cost.latency_s), float(cost.energy_j))


def input_cycles(
    model: nn.Module, params: Any, images: np.ndarray, fragments: tuple[int, ...]
) -> dict[int, np.ndarray]:
    """Mean effective input cycles of LeNet-5's four products on these images, for every size of a fragment.

    Activations are rounded to whole numbers of 16 bits, full scale the largest of their layer; windows are read in the
    order of channel, height, width, as the rows of an array are.
    """

    @jax.jit
    def means(params, images):
        rows = _inputs(model, params, images)
        return {m: jnp.stack([jnp.mean(effective_input_cycles(x, m)) for x in rows]) for m in fragments}

    return {m: np.asarray(each) for m, each in means(params, jnp.asarray(images)).items()}


def _inputs(model: nn.Module, params: Any, images: jax.Array) -> list[jax.Array]:
    """What every product of the network gets, a row of an array the last axis."""
    _, kept = model.apply({"params": params}, images, capture_intermediates=True, mutable=["intermediates"])
    outputs = {name: value["__call__"][0] for name, value in kept["intermediates"].items() if name != "__call__"}
    second, hidden = (max_pool2(nn.relu(outputs[name])) for name in ("conv1", "conv2"))
    rows = [_windows(images), _windows(second), hidden.reshape(len(images), -1), nn.relu(outputs["fc1"])]
    return [jnp.round(x / jnp.max(x) * (2**ACTIVATION_BITS - 1)) for x in rows]


def _windows(x: jax.Array) -> jax.Array:
    order = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated_patches(x, (5, 5), (1, 1), "VALID", dimension_numbers=order)
