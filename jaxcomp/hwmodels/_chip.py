"""Chips of crossbars: arrays in groups, groups in tiles, tiles in a chip, and the power and area of every part."""

import dataclasses
from typing import Any

from jaxcomp._pytree import register_dataclass

Part = tuple[Any, Any]  # watts and square millimetres at full activity, of all units of it together


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Chip:
    """What arrays of cells share, as a table of parts.

    Power and area are linear in tiles: those of the parts of a group times the groups of a tile, and so on up. Power is
    that of full activity.

    Measured on ``isaac_power_area.csv``: totals of a group 24.08 mW and 0.01312 mm2, of a tile 330 mW and 0.372 mm2, of
    168 tiles 55.4 W and 62.5 mm2, of the chip 65.8 W and 85.4 mm2, each within 0.3 %
    (``tests/hwmodels/test_crossbar.py``).

    Args:
        group: parts of one group of arrays (ISAAC's IMA), by name: watts and square millimetres.
        tile: parts of a tile beside its groups.
        links: parts of the chip beside its tiles.
        arrays: of a group.
        groups: of a tile.
        tiles: of the chip.

    >>> chip = Chip.isaac()
    >>> round(chip.power_w, 1), round(chip.area_mm2, 1)
    (65.8, 85.4)

    References: Shafiee et al., ISAAC, ISCA 2016.
    """

    group: dict[str, Part]
    tile: dict[str, Part]
    links: dict[str, Part]
    arrays: Any = 8
    groups: Any = 12
    tiles: Any = 168

    @property
    def group_power_w(self) -> Any:
        return _total(self.group, 0)

    @property
    def group_area_mm2(self) -> Any:
        return _total(self.group, 1)

    @property
    def tile_power_w(self) -> Any:
        return _total(self.tile, 0) + self.groups * self.group_power_w

    @property
    def tile_area_mm2(self) -> Any:
        return _total(self.tile, 1) + self.groups * self.group_area_mm2

    @property
    def power_w(self) -> Any:
        return _total(self.links, 0) + self.tiles * self.tile_power_w

    @property
    def area_mm2(self) -> Any:
        return _total(self.links, 1) + self.tiles * self.tile_area_mm2

    @property
    def array_power_w(self) -> Any:
        """One array's share of its tile."""
        return self.tile_power_w / (self.groups * self.arrays)

    @property
    def array_area_mm2(self) -> Any:
        """One array's share of its tile."""
        return self.tile_area_mm2 / (self.groups * self.arrays)

    @classmethod
    def isaac(cls, rows: Any = 128, columns: Any = 128) -> "Chip":
        """ISAAC's, 32 nm. Of other arrays, cells go with rows times columns, drivers with rows, holds with columns.

        The former is what PUMA's constants say (`puma_component_constants.csv`, 32 to 256 rows: exact); the latter is
        an assumption, and so is that converters and buffers stay.
        """
        cells, drivers, holds = rows * columns / 128**2, rows / 128, columns / 128
        group = {
            "converters": (16e-3, 9.6e-3),
            "drivers": (4e-3 * drivers, 0.17e-3 * drivers),
            "sample and hold": (0.01e-3 * holds, 0.04e-3 * holds),
            "arrays": (2.4e-3 * cells, 0.2e-3 * cells),
            "shift and add": (0.2e-3, 0.24e-3),
            "input register": (1.24e-3, 2.1e-3),
            "output register": (0.23e-3, 0.77e-3),
        }
        tile = {
            "buffer": (20.7e-3, 0.083),
            "bus": (7e-3, 0.09),
            "router": (10.5e-3, 0.0378),  # a quarter of one that four tiles share
            "sigmoid": (0.52e-3, 0.6e-3),
            "shift and add": (0.05e-3, 0.06e-3),
            "pooling": (0.4e-3, 0.24e-3),
            "output register": (1.68e-3, 3.2e-3),
        }
        return cls(group, tile, {"links": (10.4, 22.88)})

    @classmethod
    def forms(cls) -> "Chip":
        """ISAAC's with FORMS' converters. Its logic to skip zeros and to hold signs is not in the table at hand."""
        isaac = cls.isaac()
        return dataclasses.replace(isaac, group=isaac.group | {"converters": (15.2e-3, 9.1e-3)})


def _total(parts: dict[str, Part], number: int) -> Any:
    return sum(part[number] for part in parts.values())
