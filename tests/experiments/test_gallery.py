"""The gallery shows every set of the library."""

import jax
import pytest

import jaxcomp as jc
from experiments import _gallery
from experiments.__main__ import main

ALIKE = {jc.BoxedBall, jc.L2Ball, jc.Box, jc.Simplex, jc.Convex, jc.Dykstra}

pytest.importorskip("matplotlib")


@pytest.mark.slow
@pytest.mark.optimised
def test_the_command_draws_both_leaves_and_prints_a_row_a_set(tmp_path, capsys):
    assert main(["gallery", "--results", str(tmp_path)]) == 0
    for name in ("matrix", "convolution"):
        assert (tmp_path / f"gallery-{name}.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    rows = sum(line.startswith(("│ matrix", "│ convolution")) for line in printed.splitlines())
    assert rows == len(_gallery.MATRIX) + len(_gallery.CONVOLUTION)


def test_every_public_set_of_one_leaf_is_shown():
    shown = {
        type(part)
        for sets in (_gallery.MATRIX, _gallery.CONVOLUTION)
        for part in jax.tree.leaves(list(sets.values()), is_leaf=lambda node: isinstance(node, jc.Constraint))
    }
    public = {value for value in vars(jc).values() if isinstance(value, type) and issubclass(value, jc.Constraint)}
    of_one_leaf = {kind for kind in public if not issubclass(kind, jc.Joint)} - {jc.Constraint}
    # FixedMask shows what it is given, Compacted a leaf that was pruned before, the others much the same as L1Ball.
    assert of_one_leaf - shown == {jc.FixedMask, jc.Compacted, *ALIKE}
