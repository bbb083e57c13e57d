"""What a search for an accelerator may choose: sizes, loops in parallel, tiles and orders, as real numbers."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcomp as jc
from jaxcomp import Exact, Level, Mapping, Mode, Product, Spatial, Workload

DIMENSIONS = "NKCPQRS"  # of `Mapping`
SIZING, IMPORTANCE, INDEX = "sizing", "importance", "index"
LEVELS = 3  # in a unit of the array, on the chip, outside
_LOOPS = len(DIMENSIONS)
_ORDERS = np.array(list(itertools.permutations(range(_LOOPS - 1))), np.float32)  # importances of all but N
PAIRS = np.array(list(itertools.permutations(range(_LOOPS - 1), 2)), np.int32)
# Outputs beside inputs on the array, and weights that stay while pixels go by, as in NVDLA.
_FIXED_PAIR = DIMENSIONS.index("K"), DIMENSIONS.index("C")
_FIXED_ORDER = np.array(["QPSRCKN".index(d) for d in DIMENSIONS], np.float32)  # inside first


@dataclasses.dataclass(frozen=True)
class Envelope:
    """What all designs may use: multipliers, KiB on the chip, words a cycle. Energies are in those of a MAC.

    Energies of the two memories are MAESTRO's, that of what is outside Eyeriss'.
    """

    units: int = 256
    kib: float = 128.0
    shared_words: float = 64.0
    outside_words: float = 8.0
    local_pj: float = 1.68
    shared_pj: float = 18.61
    outside_pj: float = 200.0

    def device(self, mapping: Mapping) -> Spatial:
        levels = (
            Level("local", "WIO", access_pj=self.local_pj),
            Level("shared", "WIO", float(self.units), words_per_cycle=self.shared_words, access_pj=self.shared_pj),
            Level("outside", "WIO", words_per_cycle=self.outside_words, access_pj=self.outside_pj),
        )
        return Spatial(levels, mapping, mac_pj=1.0)


def alexnet() -> Workload:
    """Five convolutions of AlexNet without groups: inputs, outputs, kernel, pixels a side, stride."""
    rows = [(3, 64, 11, 55, 4), (64, 192, 5, 27, 1), (192, 384, 3, 13, 1), (384, 256, 3, 13, 1), (256, 256, 3, 13, 1)]
    layers = []
    for i, (inputs, outputs, kernel, out, stride) in enumerate(rows, 1):
        inside = (out - 1) * stride + kernel
        sides = (kernel, kernel, inside, inside, out, out)
        layers.append(Product(f"conv{i}", f"conv{i}/kernel", 1, 1, inputs, outputs, *sides, stride))
    return Workload(tuple(layers))


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hardware:
    """An accelerator: the sides of its array, the loop on each, and KiB of one local and of the shared memory."""

    sides: jax.Array
    loops: jax.Array
    local_kib: jax.Array
    shared_kib: jax.Array


class Found(NamedTuple):
    """What a mapping costs and takes: cycles, energy in those of a MAC, KiB of one local and of the shared memory."""

    cycles: jax.Array
    energy: jax.Array
    local_kib: jax.Array
    shared_kib: jax.Array


@dataclasses.dataclass(frozen=True)
class Space:
    """Vectors of real numbers and what they mean. Invalid sizes are repaired, not drawn again.

    Attributes:
        envelope: what all designs may use.
        encoding: "sizing" has a square array, its two loops and all orders fixed; "importance" ranks loops by real
            numbers, the two largest in parallel and larger ones outside; "index" rounds one number to a pair of loops
            or to one of 720 orders.
    """

    envelope: Envelope
    encoding: str

    @property
    def hardware_size(self) -> int:
        return {SIZING: 2, IMPORTANCE: 3 + _LOOPS - 1, INDEX: 3 + 1}[self.encoding]

    @property
    def mapping_size(self) -> int:
        return 2 * (_LOOPS - 1) + {SIZING: 0, IMPORTANCE: LEVELS * (_LOOPS - 1), INDEX: LEVELS}[self.encoding]

    def hardware(self, x: jax.Array) -> Hardware:
        """Sides are even, memories multiples of 16 bytes, and together within the envelope."""
        share = jax.nn.sigmoid(x)
        most, kib = self.envelope.units, self.envelope.kib
        if self.encoding == SIZING:
            side = _even(2 * (most**0.5 / 2) ** share[0])
            sides, loops = jnp.stack([side, side]), jnp.asarray(_FIXED_PAIR)
        else:
            units, first = 4 * (most / 4) ** share[0], 2 * (most / 4) ** share[2]
            first = jnp.minimum(_even(first), most / 2)
            sides = jnp.stack([first, jnp.maximum(jnp.floor(units / first / 2) * 2, 2)])
            loops = self._pair(x[3:])
        units = jnp.prod(sides)
        local = jnp.floor(64 * 2 ** (8 * share[1]) / 16) * 16 / 1024 * jnp.ones(())
        local = jnp.minimum(local, jnp.floor(kib * 0.75 / units * 64) / 64)
        return Hardware(sides, loops, local, kib - units * local)

    def _pair(self, x: jax.Array) -> jax.Array:
        if self.encoding == IMPORTANCE:
            return 1 + jnp.argsort(-x, stable=True)[:2]
        return 1 + jnp.asarray(PAIRS)[_nearest(x[0], len(PAIRS))]

    def mapping(self, x: jax.Array, hardware: Hardware, layer: Product, rounded: bool = True) -> Mapping:
        """Of one layer: tiles are shares, in logarithms, of what is left of a loop; in whole steps, or real ones."""
        ceil, near = (jnp.ceil, jnp.round) if rounded else (_same, _same)
        whole = sizes(layer)
        spatial = jnp.ones(_LOOPS)
        for side, loop in zip(hardware.sides, hardware.loops, strict=True):
            trips = jnp.maximum(ceil(whole[loop] / side), 1)
            spatial = spatial.at[loop].set(ceil(whole[loop] / trips))
        left, temporal = ceil(whole / spatial), []
        for share in jax.nn.sigmoid(x[: 2 * (_LOOPS - 1)].reshape(2, -1)):
            share = jnp.concatenate([jnp.zeros(1), share])
            factor = ceil(left / ceil(left / near(left**share)))
            temporal.append(factor)
            left = ceil(left / factor)
        ones = jnp.ones(_LOOPS)
        return Mapping(jnp.stack(temporal), jnp.stack([ones, spatial, ones]), self._order(x[2 * (_LOOPS - 1) :]))

    def _order(self, x: jax.Array) -> jax.Array:
        if self.encoding == SIZING:
            return jnp.stack([jnp.asarray(_FIXED_ORDER)] * LEVELS)
        rows = x.reshape(LEVELS, -1)
        if self.encoding == INDEX:
            rows = jnp.asarray(_ORDERS)[_nearest(rows[:, 0], len(_ORDERS))]
        return jnp.concatenate([jnp.zeros((LEVELS, 1)), rows], 1)

    def cost(self, mapping: Mapping, layer: Product, mode: Mode = Exact()) -> Found:
        """Of one layer."""
        device = self.envelope.device(mapping)
        cost, (local, shared, _) = device.product(layer, mode=mode), device.needs(layer, mode=mode)
        return Found(cost.latency_s * device.clock_hz, cost.energy_j * 1e12, local.capacity_kib, shared.capacity_kib)


def sizes(layer: Product) -> jax.Array:
    """Steps of the loops of `DIMENSIONS`."""
    pixels = layer.out_h, layer.out_w, layer.kernel_h, layer.kernel_w
    return jnp.stack([layer.batch, layer.outputs, layer.inputs, *pixels])


def _even(x: Any) -> jax.Array:
    return jnp.maximum(jnp.round(x / 2) * 2, 2)


def _same(x: Any) -> Any:
    return x


def _nearest(x: jax.Array, count: int) -> jax.Array:
    return jnp.clip(jnp.floor(jax.nn.sigmoid(x) * count), 0, count - 1).astype(jnp.int32)
