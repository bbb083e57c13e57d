"""Sets for blocks of LeNet-5's two large layers: shares of them unified and pruned, alone or at equal stored bits."""

import math
from dataclasses import dataclass
from typing import Any

import jaxcomp as jc

LAYERS = r"(conv2|fc1)/kernel"  # 425 000 of 430 500 weights; first and last layer are left alone
BLOCKS = {"1x4": (1, 4), "1x8": (1, 8), "4x4": (4, 4), "8x8": (8, 8)}  # outputs by inputs
WIDTH = 32  # bits of a weight, and of a magnitude


@dataclass(frozen=True)
class Shares:
    """Of all blocks of a layer, how many have one magnitude and how many are zero."""

    unified: float
    pruned: float = 0.0

    def __str__(self) -> str:
        return ", ".join(f"{100 * share:.3g} % {state}" for state, share in vars(self).items() if share)

    @property
    def kind(self) -> str:
        """Which states there are beside the free one."""
        return " and ".join(state for state, share in vars(self).items() if share)

    def bits(self, size: int) -> float:
        """Stored for a block of `size` weights, on average: its weights, magnitude and signs, and code of its state."""
        free = 1 - self.unified - self.pruned
        states = sum(share > 1e-9 for share in (self.unified, self.pruned, free))
        return free * size * WIDTH + self.unified * (size + WIDTH) + states - 1


ALL = Shares(1.0)
BOTH = Shares(0.5, 0.4)
HARD = Shares(0.9), Shares(0.0, 0.9)  # equally many blocks unified and pruned
KINDS = {shares.kind: shares for shares in (ALL, BOTH, HARD[1])}  # of each the shares that its rho is chosen at


def levels(block: str) -> list[tuple[Shares, Shares | None, Shares]]:
    """What takes equally many bits: both, unified alone (none where it cannot) and pruned alone.

    First at the bits of `BOTH`, then at those of `ALL`, where half of the blocks are pruned for both.
    """
    n = size(block)
    at_both, at_all = BOTH.bits(n), ALL.bits(n)
    return [
        (BOTH, unified_at(n, at_both), pruned_at(n, at_both)),
        (both_at(n, at_all, 0.5), ALL, pruned_at(n, at_all)),
    ]


def unified_at(size: int, bits: float) -> Shares | None:
    """Unified blocks alone that take so many bits; none where even all of them take more."""
    share = (size * WIDTH + 1 - bits) / (size * WIDTH - size - WIDTH)
    return Shares(share) if share <= 1 else None


def pruned_at(size: int, bits: float) -> Shares:
    """Pruned blocks alone that take so many bits."""
    return Shares(0.0, 1 - (bits - 1) / (size * WIDTH))


def both_at(size: int, bits: float, pruned: float) -> Shares:
    """So many pruned, and besides as many unified as take so many bits."""
    return Shares(((1 - pruned) * size * WIDTH + 2 - bits) / (size * WIDTH - size - WIDTH), pruned)


def spec(params: Any, block: str, shares: Shares) -> jc.Spec:
    """The set of both layers; their shapes are all that is read of ``params``."""
    view = jc.blocks(*BLOCKS[block])
    return jc.assign(params, {LAYERS: jc.Unified(shares.unified, shares.pruned, view)})


def size(block: str) -> int:
    """Weights of a block."""
    return math.prod(BLOCKS[block])
