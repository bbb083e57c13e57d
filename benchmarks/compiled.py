"""What `jaxcomp.compile` makes of pruned weights, beside dense JAX, PyTorch and ONNX Runtime on the same weights.

Products alone first and what the parts of one take, then a recurrent network, the feed-forward part of a transformer,
and layers of blocks.
"""

from typing import Any

from rich.console import Group

from benchmarks import _compiled_blocks, _compiled_models, _compiled_products


def measure(repeats: int) -> tuple[dict[str, Any], Group]:
    """The figures of all three, and their tables."""
    parts = {"products": _compiled_products, "blocks": _compiled_blocks, "models": _compiled_models}
    found = {name: part.measure(repeats) for name, part in parts.items()}
    return {name: figures for name, (figures, _) in found.items()}, Group(*(table for _, table in found.values()))
