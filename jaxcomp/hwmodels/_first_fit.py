"""One buffer for all activations: where every tensor lies, so that none overlap while both are alive."""

import dataclasses
from collections.abc import Sequence

from jaxcomp._workload import Tensor


@dataclasses.dataclass(frozen=True)
class Placement:
    """Addresses of tensors in one buffer, in elements.

    Attributes:
        addresses: of the first element of every tensor, in the order given.
        peak: elements of the buffer.
    """

    addresses: tuple[int, ...]
    peak: int


def first_fit(tensors: Sequence[Tensor]) -> Placement:
    """Place the largest tensors first, each at the lowest address that is free as long as it lives.

    A greedy packing of rectangles, lifetime by size, as microcontrollers' engines do it before any code runs. The
    buffer is never smaller than the most elements alive at once. MobileNetV2 of factor 0.35 at 144 pixels, and of 0.3
    at 64, take that and no more (``tests/hwmodels/test_microcontroller.py``); but it may be larger even for a chain,
    where only neighbours are alive together: of 10, 5, 3 and 9 elements 15 are alive at most, and this takes 18.

    >>> chain = [Tensor("x", 6, -1, 0, 0), Tensor("h", 8, 0, 1, 1), Tensor("y", 2, 1, 2)]
    >>> first_fit(chain)
    Placement(addresses=(8, 0, 8), peak=14)

    References: Lin et al., MCUNet, NeurIPS 2020 (its engine's allocator).
    """
    addresses: dict[int, int] = {}
    for number in sorted(range(len(tensors)), key=lambda i: (-tensors[i].elements, i)):
        this, address = tensors[number], 0
        together = [other for other in addresses if _meet(this, tensors[other])]
        for other in sorted(together, key=addresses.__getitem__):
            if address + this.elements <= addresses[other]:
                break
            address = max(address, addresses[other] + tensors[other].elements)
        addresses[number] = address
    peak = max((addresses[i] + tensor.elements for i, tensor in enumerate(tensors)), default=0)
    return Placement(tuple(addresses[i] for i in range(len(tensors))), peak)


def _meet(a: Tensor, b: Tensor) -> bool:
    return a.born <= b.dies and b.born <= a.dies
