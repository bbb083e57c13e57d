"""How the outputs of a matrix are best cut into strips: read from its zeros."""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from jaxcomp.compiler.formats._prices import Prices

_MOST = 4  # buckets
_NARROWEST = 8  # outputs of a strip: a vector register


class Bucket(NamedTuple):
    """Strips that have room for as many inputs each: ``[stack, strips]``, their numbers."""

    strips: np.ndarray
    inputs: int


class Plan(NamedTuple):
    """A way of cutting outputs into strips.

    Attributes:
        cost: of a row, as of `Prices`, calls aside.
        calls: operations of its own.
        order: ``[stack, columns]``, the outputs as they are cut; None as they come.
        width: outputs of a strip.
        used: ``[stack, depth, strips]``, which inputs a strip needs.
        buckets: strips of about equal need; those that need nothing are in none.
    """

    cost: float
    calls: int
    order: np.ndarray | None
    width: int
    used: np.ndarray
    buckets: tuple[Bucket, ...]

    def total(self, prices: Prices) -> float:
        return self.cost + self.calls * prices.call


def plans(mask: np.ndarray, prices: Prices) -> list[Plan]:
    """Plans for ``mask``, ``[stack, depth, columns]``, one for every width, cheapest first."""
    if not mask.any():
        return [narrow(mask, prices)]
    best: dict[int, Plan] = {}
    for order in (None, by_support(mask)):
        ordered = mask if order is None else np.take_along_axis(mask, order[:, None], axis=2)
        for width, used in widths(ordered).items():
            plan = _plan(order, width, used, prices)
            if width not in best or plan.total(prices) < best[width].total(prices):
                best[width] = plan
    return sorted(best.values(), key=lambda plan: plan.total(prices))


def narrow(mask: np.ndarray, prices: Prices) -> Plan:
    """Every output by itself, those of about as many inputs together."""
    return _plan(None, 1, mask, prices)


def _plan(order: np.ndarray | None, width: int, used: np.ndarray, prices: Prices) -> Plan:
    depth, strips = used.shape[1:]
    counts = used.sum(axis=1)
    ranked = np.argsort(-counts, axis=1, kind="stable")
    most = np.take_along_axis(counts, ranked, axis=1).max(axis=0)
    needed = int(np.count_nonzero(most))
    each = width + prices.gathered
    ends = _cut(most[:needed], prices.call / each)
    moved = order is not None
    if len(ends) == 1 and needed == strips:
        ranked = np.broadcast_to(np.arange(strips), ranked.shape)  # nothing is gained by moving strips
    else:
        moved = True
    buckets = tuple(
        Bucket(np.sort(ranked[:, start:end], axis=1), int(most[start]))
        for start, end in zip((0, *ends), ends, strict=False)
    )
    if len(ends) == 1 and needed == 1 and most[0] == depth:
        each = width  # all inputs, as they come: nothing is gathered
    cost = sum(bucket.strips.shape[1] * bucket.inputs * each for bucket in buckets)
    cost += moved * strips * width * prices.gathered
    return Plan(cost, len(buckets), order, width, used, buckets)


def _cut(needs: np.ndarray, call: float) -> tuple[int, ...]:
    """Where falling needs are best cut into buckets, each of which takes its largest for all, and a call."""
    steps = [0, *(np.flatnonzero(np.diff(needs)) + 1).tolist(), needs.size]  # a cut elsewhere is no better
    if needs.size == 0:
        return ()
    cheapest: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *[(np.inf, ())] * (len(steps) - 1)]
    for _ in range(_MOST):
        # One bucket more: the last one starts at any step.
        cheapest = [cheapest[0]] + [
            min(
                [cheapest[stop]]
                + [
                    (before + needs[steps[start]] * (steps[stop] - steps[start]) + call, (*ends, steps[stop]))
                    for start, (before, ends) in enumerate(cheapest[:stop])
                    if before < np.inf
                ]
            )
            for stop in range(1, len(steps))
        ]
    return cheapest[-1][1]


def widths(mask: np.ndarray) -> dict[int, np.ndarray]:
    """Widths worth trying, and with each the inputs that some output of a strip has: ``[stack, depth, strips]``."""
    stack, depth, columns = mask.shape
    differs = (mask[..., 1:] != mask[..., :-1]).any(axis=(0, 1))
    lengths = np.diff([0, *(np.flatnonzero(differs) + 1).tolist(), columns])
    usual = Counter(lengths.tolist()).most_common(1)[0][0]
    read = dict[int, np.ndarray]()
    used = int(mask.any(axis=1).sum(axis=1).max())
    for width in sorted({max(_NARROWEST, width) for width in (math.gcd(*lengths.tolist()), usual, used)}):
        finer = mask
        merged = width
        while width < 2 * columns and width not in read:
            fill = -finer.shape[2] % merged
            finer = np.pad(finer, ((0, 0), (0, 0), (0, fill))).reshape(stack, depth, -1, merged)
            read[width] = finer = np.any(finer, axis=3)
            width, merged = 2 * width, 2
    return read


def by_support(mask: np.ndarray) -> np.ndarray:
    """``[stack, columns]``: outputs in an order that puts those with the same inputs together, those with none last."""
    return np.stack([np.argsort(each, kind="stable")[::-1] for each in supports(mask)])


def supports(mask: np.ndarray) -> np.ndarray:
    """``[stack, columns]``: the inputs of each output as one value, the same for the same inputs."""
    bits = np.ascontiguousarray(np.packbits(mask, axis=1).swapaxes(1, 2))
    return bits.view(f"V{bits.shape[2]}")[..., 0]
