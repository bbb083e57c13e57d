"""What was saved: of every leaf the form, and its bytes beside those that its footprint promised."""

import dataclasses
from pathlib import Path

from jaxcomp._table import Table
from jaxcomp.storage._stream import Node


@dataclasses.dataclass(frozen=True)
class SavedLeaf:
    """One leaf on disk.

    Attributes:
        path: of the leaf.
        form: what it is kept as, from the outside in.
        shape: of the leaf.
        bytes: that it takes on disk, without what names it there.
        footprint_bytes: that its footprint promised.
        dense_bytes: of the leaf as it stands.
        error: how far what is read back is from the leaf, as a share of its norm: 0 where every weight is equal.
    """

    path: str
    form: str
    shape: tuple[int, ...]
    bytes: int
    footprint_bytes: float
    dense_bytes: int
    error: float = 0.0


@dataclasses.dataclass(frozen=True)
class Saved:
    """A folder of saved parameters; print it.

    Attributes:
        path: of the folder.
        leaves: in the order of the tree.
        overhead_bytes: of names, manifest and checksums: what the folder takes beside the leaves.
    """

    path: Path
    leaves: tuple[SavedLeaf, ...]
    overhead_bytes: int

    @property
    def bytes(self) -> int:
        """That the folder's files take together."""
        return sum(leaf.bytes for leaf in self.leaves) + self.overhead_bytes

    def table(self) -> Table:
        """A row a leaf, the overhead, and the total."""
        table = Table(f"saved in {self.path}", ["leaf", "shape", "kept as", "bytes", "footprint", "dense"])
        for leaf in self.leaves:
            shape = "x".join(map(str, leaf.shape))
            form = leaf.form + (f", to {leaf.error:.0e}" if leaf.error else "")
            table.row(leaf.path, shape, form, *map(_count, (leaf.bytes, leaf.footprint_bytes, leaf.dense_bytes)))
        table.row("names and checksums", "-", "-", _count(self.overhead_bytes), "-", "-")
        promised, dense = (
            sum(getattr(leaf, name) for leaf in self.leaves) for name in ("footprint_bytes", "dense_bytes")
        )
        table.row("all", "-", "-", *map(_count, (self.bytes, promised, dense)))
        return table

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self):
        return self.table().__rich__()


def described(node: Node | None) -> str:
    """What a leaf is kept as, in words."""
    if node is None:
        return "as it stands"
    of = node.get("of")
    if isinstance(of, list):
        inner = f" ({' | '.join('zeros' if one is None else described(one) for one in of)})"
    else:
        inner = "" if of is None or of["form"] == "plain" else f" > {described(of)}"
    view = f" by {node['view']['name']}" if "view" in node else ""
    return f"{node['form']}{view}{inner}"


def _count(number: float) -> str:
    return f"{number:,.0f}"
