"""Access counts in closed form against a walk through the loops that remembers what every memory holds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp._workload import Product
from jaxcomp.hwmodels._mapping import DIMENSIONS, Mapping
from jaxcomp.hwmodels._reuse import Reuse


class Walk:
    """All iterations in order; every unit keeps its tile as a set of coordinates."""

    def __init__(self, mapping: Mapping, product: Product, keeps: tuple[str, ...]):
        steps, self.keeps, self.stride = np.asarray(mapping.steps(product)), keeps, product.stride
        loops = []  # from the outermost: level, dimension, factor, whether spatial
        for level in reversed(range(len(keeps))):
            order = np.argsort(-np.asarray(mapping.importance)[level], kind="stable")
            loops += [(level, d, int(steps[level, d]), False) for d in order]
            loops += [(level, d, int(mapping.spatial[level][d]), True) for d in range(7)]
        self.loops = [loop for loop in loops if loop[2] > 1]

    def _coordinates(self, places):
        """The coordinates of the seven loops at which an iteration stands, given its place in every loop."""
        at, size = [0] * 7, [1] * 7
        for (_, d, n, _), place in zip(reversed(self.loops), reversed(places), strict=True):
            at[d] += place * size[d]
            size[d] *= n
        return at

    def _word(self, tensor, at):
        n, k, c, p, q, r, s = at
        inputs = (n, c, p * self.stride + r, q * self.stride + s)
        return {"W": (k, c, r, s), "I": inputs, "O": (n, k, p, q)}[tensor]

    def _tiles(self, tensor, level):
        """For each step of the loops above a level: by unit of the level, the words of its tile."""
        above = [i for i, loop in enumerate(self.loops) if loop[0] > level]
        steps = [i for i in above if not self.loops[i][3]]
        units = [i for i in above if self.loops[i][3]]
        below = [i for i in range(len(self.loops)) if i not in above]

        def ranges(chosen):
            return itertools.product(*(range(self.loops[i][2]) for i in chosen))

        for step in ranges(steps):
            tiles = {}
            for unit in ranges(units):
                tiles[unit] = set()
                for rest in ranges(below):
                    places = dict(zip(steps + units + below, step + unit + rest, strict=True))
                    at = self._coordinates([places[i] for i in range(len(self.loops))])
                    tiles[unit].add(self._word(tensor, at))
            yield tiles

    def accesses(self, tensor):
        holders, found, below = [i for i, held in enumerate(self.keeps) if tensor in held], {}, -1
        for level in holders:
            # What goes between this level and the one below: every word once for all units that want it at once.
            served = self._served(tensor, below, level)
            if level == holders[-1]:
                every = set().union(*next(self._tiles(tensor, level)).values())
                found[level] = 2 * served - len(every) if tensor == "O" else served
                break
            brought, first = self._brought(tensor, level)
            found[level] = 2 * served + brought - first if tensor == "O" else served + brought
            below = level
        return found

    def _served(self, tensor, below, level):
        """Words that a level gives to the units below, counted once within one memory of the level."""
        depth = sum(loop[0] > level and loop[3] for loop in self.loops)
        held, total = {}, 0
        for tiles in self._tiles(tensor, below):
            wanted = {}
            for unit, tile in tiles.items():
                new = tile if below < 0 else tile - held.get(unit, set())
                wanted.setdefault(unit[:depth], set()).update(new)
            held, total = tiles, total + sum(map(len, wanted.values()))
        return total

    def _brought(self, tensor, level):
        held, seen, total = {}, {}, 0
        for tiles in self._tiles(tensor, level):
            for unit, tile in tiles.items():
                total += len(tile - held.get(unit, set()))
                seen.setdefault(unit, set()).update(tile)
            held = tiles
        return total, sum(map(len, seen.values()))


@st.composite
def nests(draw, dimensions=DIMENSIONS):
    """A mapping of three levels of at most 256 iterations, and the layer that it covers exactly."""
    levels, most = 3, 256
    temporal, spatial = np.ones((levels, 7), np.float32), np.ones((levels, 7), np.float32)
    for _ in range(draw(st.integers(0, 7))):
        array = draw(st.sampled_from([temporal, temporal, spatial]))
        where = draw(st.integers(0, levels - 1)), DIMENSIONS.index(draw(st.sampled_from(dimensions)))
        factor = draw(st.integers(2, 3))
        if temporal.prod() * spatial.prod() * factor <= most:
            array[where] *= factor
    importance = np.array([draw(st.permutations(range(7))) for _ in range(levels)], np.float32)
    n, k, c, p, q, r, s = (int(x) for x in (temporal * spatial).prod(0))
    stride = draw(st.integers(1, 2))
    product = Product("nest", None, n, 1, c, k, r, s, out_h=p, out_w=q, stride=stride)
    return Mapping(temporal[:-1], spatial, importance), product


HIERARCHIES = [("WIO", "WIO", "WIO"), ("W", "IO", "WIO"), ("O", "W", "WIO")]


@given(nests(), st.sampled_from(HIERARCHIES), st.sampled_from("WO"))
def test_weights_and_outputs_move_as_often_as_in_a_walk(nest, keeps, tensor):
    mapping, product = nest
    found = Reuse.of(mapping, product).accesses(tensor, keeps)
    assert {level: int(words) for level, words in found.items()} == Walk(mapping, product, keeps).accesses(tensor)


@given(nests("NKCPQ"), st.sampled_from(HIERARCHIES))
def test_inputs_without_windows_move_as_often_as_in_a_walk(nest, keeps):
    mapping, product = nest
    product = Product(
        "dense", None, product.batch, 1, product.inputs, product.outputs, 1, 1, out_h=product.out_h, out_w=product.out_w
    )
    found = Reuse.of(mapping, product).accesses("I", keeps)
    assert {level: int(words) for level, words in found.items()} == Walk(mapping, product, keeps).accesses("I")


@given(nests("NKCPQRS"))
def test_inputs_under_windows_never_move_less_than_in_a_walk(nest):
    mapping, product = nest
    mapping = Mapping(mapping.temporal, np.ones_like(mapping.spatial), mapping.importance)
    product = Product(
        "conv",
        None,
        product.batch,
        1,
        product.inputs,
        product.outputs,
        product.kernel_h,
        product.kernel_w,
        out_h=product.out_h,
        out_w=product.out_w,
    )
    keeps = ("WIO", "WIO", "WIO")
    found, walked = Reuse.of(mapping, product).accesses("I", keeps), Walk(mapping, product, keeps).accesses("I")
    assert all(found[level] >= walked[level] - 0.5 for level in walked)


@pytest.mark.parametrize(
    ("stride", "kernel", "text", "fetched"),
    [
        (1, 3, "L1[WIO] P4 - L0[WIO] R3 Q4 S3", 6 * 6),  # rows of windows slide: every input comes once
        (2, 3, "L1[WIO] P4 - L0[WIO] R3 Q4 S3", 9 * 9),
        (1, 3, "L1[WIO] P4 K2 - L0[WIO] R3 Q4 S3", 6 * 6),  # outputs inside: the tile stays
        (1, 3, "L1[WIO] K2 P4 - L0[WIO] R3 Q4 S3", 2 * 6 * 6),  # outputs outside: all of it again
        (1, 3, "L1[WIO] P4 Q2 - L0[WIO] R3 Q2 S3", 4 * 3 * 6),  # columns slide, rows do not
        (4, 2, "L1[WIO] P4 - L0[WIO] R2 Q4 S2", 4 * 2 * 14),  # windows with gaps between them share nothing
    ],
)
def test_windows_bring_only_what_is_new(stride, kernel, text, fetched):
    mapping = Mapping.parse(text)
    outputs = 2 if "K2" in text else 1
    product = Product("conv", None, 1, 1, 1, outputs, kernel, kernel, out_h=4, out_w=4, stride=stride)
    reuse = Reuse.of(mapping, product)
    assert float(reuse.accesses("I", ("WIO", "WIO"))[1]) == pytest.approx(fetched)


def test_one_read_serves_all_units_that_want_the_same_word():
    product = Product("dense", None, 5, 1, 4, 3)
    reuse = Reuse.of(Mapping.parse("L1[WIO] N5 K3X C4X - L0[W] N1"), product)
    keeps = ("W", "WIO")
    assert float(reuse.accesses("I", keeps)[1]) == 5 * 4  # not times 3 outputs
    assert float(reuse.accesses("O", keeps)[1]) == 2 * 5 * 3 - 5 * 3  # sums over 4 inputs are made on the way
    assert float(reuse.accesses("W", keeps)[1]) == 12 and float(reuse.accesses("W", keeps)[0]) == 5 * 12 + 12
    assert float(reuse.units(-1)) == 12 and float(reuse.units(0)) == 12 and float(reuse.iterations) == 5
