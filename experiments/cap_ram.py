"""A network that lives in one charge-domain SRAM macro: bits of its converters against accuracy, trained for or not.

Chen et al., CAP-RAM: A Charge-Domain In-Memory Computing 6T-SRAM, IEEE JSSC 2021 (arXiv 2107.02388). It holds a whole
network in 512 x 128 cells and reads 64 rows at a time by converters of 7 bits, with inputs of 8 levels. Its claims that
can be asked of a model: 7 bits are enough for MNIST if one trains for them, and charge is accurate enough.

One network of 4-bit weights is trained without errors. Then it trains on as long without errors, or through
converters of 7 or 5 bits with read noise and with a chip drawn at random every step. All are then tested on chips that
none has seen, at several widths and noises. Sizes of the imperfections are assumptions; the paper gives none.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

import jaxcomp as jc
from experiments import _cap_ram_network as network
from experiments import _plots, _tables
from experiments._classifier import decaying
from experiments._data import Split
from experiments._registry import Context, experiment
from experiments._statistics import percent, points, verdict
from jaxcomp import Readout, SramMacro, Stored, trace

_FREE = "no errors"


@dataclass(frozen=True)
class Config:
    """Imperfections as `Readout` has them: noise, offset and bow in steps of 7 bits, mismatch and gain relative.

    Steps are those of 7 bits whatever the width: noise of a column is a voltage. The clip is half of the converters'
    range, of a largest sum of 448, and is chosen by validation accuracy of the first network, read by 7 bits.
    """

    batch_size: int = 64
    learning_rate: float = 2e-3
    pretrain: int = 150
    train: int = 300
    trained_for: tuple[float, ...] = (7.0, 5.0)
    bits: tuple[float, ...] = (4.0, 5.0, 6.0, 7.0)
    noises: tuple[float, ...] = (0.0, 0.5, 2.0, 4.0)
    clips: tuple[float, ...] = (56.0, 112.0, 224.0, 448.0)
    noise: float = 0.3
    offset: float = 0.5
    bow: float = 0.3
    mismatch: float = 0.01
    gain: float = 0.01
    input_error: float = 0.02
    chips: int = 2
    images: int = 1000

    @classmethod
    def quick(cls) -> "Config":
        """For seconds on a small data set, most of them compilation."""
        return cls(
            batch_size=32,
            pretrain=100,
            train=100,
            trained_for=(7.0,),
            bits=(5.0, 7.0),
            noises=(0.0, 4.0),
            clips=(112.0, 448.0),
            chips=2,
            images=200,
        )


@experiment(
    "cap-ram",
    paper="arXiv 2107.02388",
    summary="a CNN in one SRAM macro of 65 536 bits: converter bits and noise against accuracy, trained for or not",
    data="mnist",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    study = _Study(config, context)
    cost = study.cost()
    first = study.trained(context.seeds[0])
    by_clip = {clip: study.validated(first, clip) for clip in config.clips}
    clip = max(by_clip, key=by_clip.__getitem__)
    shown = ", ".join(f"{c:g}: {100 * share:.1f} %" for c, share in by_clip.items())
    context.say(f"validation accuracy at 7 bits by clip: {shown}")
    by_bits: dict[str, dict[float, list[float]]] = {}
    by_noise: dict[str, dict[float, list[float]]] = {}
    ideal: dict[str, list[float]] = {}
    for seed in context.seeds:
        for name, params in study.networks(seed, clip).items():
            ideal.setdefault(name, []).append(study.tested(params, study.readout(jnp.inf, clip, perfect=True), seed))
            for bits in config.bits:
                share = study.tested(params, study.readout(bits, clip), seed)
                by_bits.setdefault(name, {}).setdefault(bits, []).append(share)
            for noise in config.noises:
                share = study.tested(params, study.readout(7.0, clip, noise=noise), seed)
                by_noise.setdefault(name, {}).setdefault(noise, []).append(share)
        context.say(f"seed {seed} done")
    claims = _claims(ideal, by_bits, by_noise)
    context.say(*claims)
    title = f"{context.data.name}, {config.images:,} test images, {config.chips} chips, {len(context.seeds)} seeds"
    context.console.print(_table(f"by bits of the converters: {title}", by_bits, ideal, "{:g} bits"))
    context.console.print(_table(f"at 7 bits by read noise in steps: {title}", by_noise, ideal, "{:g}"))
    context.say(
        f"one image: {cost['storage_bits']:,} of 65,536 bits, {cost['cycles']:,} operations, "
        f"{cost['latency_us']:.1f} us, {cost['energy_uj']:.3f} uJ (modelled)"
    )
    _draw(context, by_bits, ideal)
    return {
        "claims": claims,
        "clip": clip,
        "by_clip": by_clip,
        "ideal": ideal,
        "by_bits": by_bits,
        "by_noise": by_noise,
        "cost": cost,
    }


class _Study:
    """Networks trained with and without the errors of a macro, and tests of them on chips."""

    def __init__(self, config: Config, context: Context):
        self.config, self.data = config, context.data
        self._images = jnp.asarray(context.data.train.image), jnp.asarray(context.data.train.label)
        self.trained = functools.cache(self._trained)

    def readout(self, bits: Any, clip: float, noise: float | None = None, perfect: bool = False) -> Readout:
        """Converters of so many bits. Noise, offsets and bows stay what they are in steps of 7 bits."""
        c, own = self.config, 0.0 if perfect else 2.0 ** (jnp.float32(bits) - 7)
        share = 0.0 if perfect else 1.0
        return Readout(
            adc_bits=jnp.float32(bits),
            clip=jnp.float32(clip),
            noise=jnp.float32((c.noise if noise is None else noise) * own),
            offset=jnp.float32(c.offset * own),
            bow=jnp.float32(c.bow * own),
            mismatch=jnp.float32(c.mismatch * share),
            gain=jnp.float32(c.gain * share),
            input_error=jnp.float32(c.input_error * share),
            weight_bits=network.WEIGHT_BITS,
            encoding="plus_minus",
            levels=network.LEVELS,
        )

    def networks(self, seed: int, clip: float) -> dict[str, Any]:
        """The same network trained on, by what it was trained for."""
        found = {_FREE: self._solve(self.trained(seed), seed + 1000, self.readout(jnp.inf, clip, perfect=True), False)}
        for bits in self.config.trained_for:
            found[f"for {bits:g} bits"] = self._solve(self.trained(seed), seed + 1000, self.readout(bits, clip), False)
        return found

    def validated(self, params: Any, clip: float) -> float:
        split = self.data.validation
        return self._share(params, self.readout(7.0, clip), 0, split)

    def tested(self, params: Any, readout: Readout, seed: int) -> float:
        """Share of test images classified right, the mean over chips that no training has seen."""
        return self._share(params, readout, 10_000 + seed, self.data.test)

    def cost(self) -> dict[str, float]:
        """Of one image on the macro."""
        params = network.init(jax.random.key(0))
        work = trace(lambda p, x: network.apply(p, x, lambda _, x, w: x @ w), params, self._images[0][:1])
        macro, stored = SramMacro.cap_ram(), Stored(weight_bits=float(network.WEIGHT_BITS), activation_bits=3.0)
        total = macro.cost(work, stored)
        bits = int(jnp.sum(macro.storage_bits(work.stacked, stored)))
        if bits > macro.capacity_bits:
            raise ValueError(f"the network needs {bits} bits, the macro has {macro.capacity_bits}: use fewer channels")
        return {
            "storage_bits": bits,
            "cycles": int(jnp.sum(macro.cycles(work.stacked, stored))),
            "latency_us": float(total.latency_s) * 1e6,
            "energy_uj": float(total.energy_j) * 1e6,
        }

    def _share(self, params: Any, readout: Readout, seed: int, split: Split) -> float:
        split, keys = split.first(self.config.images), jax.random.split(jax.random.key(seed), self.config.chips)
        return float(_accuracy(params, readout, keys, jnp.asarray(split.image), jnp.asarray(split.label)))

    def _trained(self, seed: int) -> Any:
        """The network that all start from, trained without errors."""
        readout = self.readout(jnp.inf, 448.0, perfect=True)
        return self._solve(network.init(jax.random.key(seed)), seed, readout, True)

    def _solve(self, params: Any, seed: int, readout: Readout, first: bool) -> Any:
        steps = self.config.pretrain if first else self.config.train
        return jc.solve(
            _loss,
            params,
            jc.shuffled(self._images, self.config.batch_size, steps, seed),
            jc.ADMM({}),
            optimizer=decaying(self.config.learning_rate, steps),
            rounds=1,
            steps=steps,
            model_state=(readout, jax.random.key(seed)),
        ).params


def _loss(params: Any, batch: Any, state: tuple[Readout, jax.Array]) -> tuple[jax.Array, tuple[Readout, jax.Array]]:
    """Cross-entropy on a chip drawn anew."""
    readout, key = state
    key, chip, read = jax.random.split(key, 3)
    logits = _logits(params, batch[0], readout, chip, read)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), (readout, key)


def _logits(params: Any, images: jax.Array, readout: Readout, chip: jax.Array, read: jax.Array) -> jax.Array:
    made = readout.chip(chip)

    def matmul(name: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
        return readout.matmul(levels, weights, made, jax.random.fold_in(read, list(network.LAYERS).index(name)))

    return network.apply(params, images, matmul)


@jax.jit
def _accuracy(params: Any, readout: Readout, keys: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over chips."""

    def right(key):
        chip, read = jax.random.split(key)
        return jnp.mean(_logits(params, images, readout, chip, read).argmax(-1) == labels)

    return jnp.mean(jax.lax.map(right, keys))


Shares = dict[str, dict[float, list[float]]]


def _claims(ideal: dict[str, list[float]], by_bits: Shares, by_noise: Shares) -> list[str]:
    """What the run says of what ought to hold."""
    lines, aware = [], [name for name in by_bits if name != _FREE]
    for name in aware:
        bits = float(name.split()[1])
        if bits in by_bits[name]:
            gain = 100 * (np.array(by_bits[name][bits]) - np.array(by_bits[_FREE][bits]))
            lines.append(f"{verdict(gain)}: training {name} gains at that width ({points(gain)} points).")
    if {5.0, 7.0} <= set(by_bits[_FREE]):
        for name, shares in by_bits.items():
            gain = 100 * (np.array(shares[7.0]) - np.array(shares[5.0]))
            lines.append(f"{verdict(gain)}: 7 bits are ahead of 5, trained {name} ({points(gain)} points).")
    seven = aware[0] if aware else _FREE
    if 7.0 in by_bits[seven]:
        lost = 100 * (np.array(ideal[_FREE]) - np.array(by_bits[seven][7.0]))
        lines.append(
            f"{verdict(0.5 - lost)}: 7 bits and a chip cost at most 0.5 points, trained {seven} ({points(lost)})."
        )
    for low, high in ((0.0, 0.5), (0.0, max(by_noise[seven]))):
        if {low, high} <= set(by_noise[seven]):
            lost = 100 * (np.array(by_noise[seven][low]) - np.array(by_noise[seven][high]))
            lines.append(f"noise of {high:g} steps costs {points(lost)} points, trained {seven}.")
    return lines


def _table(title: str, shares: Shares, ideal: dict[str, list[float]], heading: str) -> Table:
    columns = ["trained", *(heading.format(number) for number in next(iter(shares.values()))), "ideal"]
    caption = "Accuracy in %; ideal: no steps and no errors."
    table = _tables.blank(title, columns, caption=caption)
    for name, each in shares.items():
        table.add_row(name, *(percent(found, ".1f") for found in (*each.values(), ideal[name])))
    return table


def _draw(context: Context, by_bits: Shares, ideal: dict[str, list[float]]) -> None:
    figure, axes = _plots.blank()
    _plots.level(axes, float(np.mean(ideal[_FREE])), "no steps, no errors")
    for (name, shares), colour, marker in zip(by_bits.items(), _plots.COLOURS, _plots.MARKERS, strict=False):
        style = dict(color=colour, marker=marker, label=f"trained {name}")
        _plots.seeded(axes, list(shares), list(shares.values()), **style)
    axes.set_xticks(list(next(iter(by_bits.values()))))
    axes.set_xlabel("bits of the converters")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(frameon=False, loc="lower right")
    _plots.save(figure, context.folder / "accuracy_by_bits.png")
