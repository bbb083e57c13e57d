"""A tree becomes a row of cells named by path, and rows become columns of one kind."""

import enum

import jax
import jax.numpy as jnp
import numpy as np

import jaxcomp as jc
from jaxcomp.sweeps._columns import cells, columns, drawn, telling

SPEC = {"w": jc.Sparse(density=0.25)}


class Colour(enum.Enum):
    RED = 1


def act(x):
    return x


def test_numbers_of_every_sort_become_pythons_own():
    tree = {"a": np.float32(0.5), "b": jnp.int32(3), "c": np.array(True), "d": 2, "e": 1 + 2j}
    assert cells(tree) == {"a": 0.5, "b": 3, "c": True, "d": 2, "e": 1 + 2j}
    assert [type(value) for value in cells(tree).values()] == [float, int, bool, int, complex]


def test_static_values_go_by_their_names():
    assert cells({"f": act, "kind": Colour.RED, "none": None, "view": jc.chunks(4), "optimizer": "adam"}) == {
        "f": "act",
        "kind": "RED",
        "none": None,
        "view": "chunks(4)",
        "optimizer": "adam",
    }


def test_names_stand_in_the_order_they_were_given():
    assert list(cells({"rho": 1, "density": {"z": 2, "a": 3}})) == ["rho", "density.z", "density.a"]


def test_arrays_and_random_keys_have_no_cell():
    assert cells({"mask": jnp.ones(3), "rows": np.zeros((1, 1)), "key": jax.random.key(0)}) == {}


def test_objects_are_named_by_class_with_static_fields_and_nested_numbers_by_path():
    found = cells({"solver": jc.ADMM(SPEC, rho=0.5), "pair": (1, [2])})
    assert found["solver"] == "ADMM" and found["solver.rho"] == 0.5
    assert found["solver.spec.w"] == "Sparse" and found["solver.spec.w.density"] == 0.25
    assert found["solver.spec.w.view"] == "elements()"
    assert found["pair.0"] == 1 and found["pair.1.0"] == 2 and "pair" not in found


def test_columns_are_of_one_kind_and_keep_their_gaps():
    rows = [{"a": 1, "b": True}, {"a": 0.5, "b": "auto"}, {"b": None, "c": 2}]
    assert columns(rows) == {"a": [1.0, 0.5, None], "b": ["True", "auto", None], "c": [None, None, 2]}


def test_within_objects_only_what_differs_is_told():
    rows = [{"n": 1, "solver": jc.ADMM(SPEC, rho=rho)} for rho in (0.1, 0.2)]
    assert telling(columns(map(cells, rows))) == {"n": [1, 1], "solver.rho": [0.1, 0.2]}


def test_a_drawn_table_shows_gaps_truths_and_as_many_rows_as_asked_for():
    text = str(drawn({"n": [0.125, None, 3, 4], "ok": [True, False, None, True]}, "what came of it", rows=3))
    assert "what came of it, 3 of them shown" in " ".join(text.split())
    rows = [line.split("│")[1:3] for line in text.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [["0.125", "yes"], ["-", "no"], ["4", "yes"]]
