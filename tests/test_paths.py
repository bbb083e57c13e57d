"""Leaves are told by their path, in any kind of tree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxcomp as jc
from jaxcomp._paths import leaves_by_path, replace, select
from tests.problems import PYTREES


@pytest.fixture(params=PYTREES)
def tree(request):
    make, *_ = PYTREES[request.param]
    return make()


@pytest.mark.parametrize("kind", PYTREES)
def test_paths_read_the_same_whatever_holds_the_leaves(kind):
    make, paths, _ = PYTREES[kind]
    assert set(leaves_by_path(make())) == paths


def test_replacing_nothing_gives_the_tree_back(tree):
    same = replace(tree, {})
    assert jax.tree.structure(same) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(tree), strict=True))


def test_replacing_exchanges_the_named_leaf_alone(tree):
    path = list(leaves_by_path(tree))[-1]
    old, new = leaves_by_path(tree), leaves_by_path(replace(tree, {path: "new"} | {"absent": 0}))
    assert path not in new  # a string is no array
    assert all(new[other] is old[other] for other in new)


def test_leaves_that_hold_no_numbers_are_left_out():
    assert leaves_by_path({"w": jnp.ones(2), "f": jax.nn.relu, "s": "text", "k": jax.random.key(0)}).keys() == {"w"}


@jc.register_dataclass
@dataclasses.dataclass
class Attention:
    query: Any
    key: Any
    value: Any


def test_a_field_called_value_keeps_its_name_among_others():
    leaves = leaves_by_path({"attention": Attention(jnp.ones(1), jnp.ones(2), jnp.ones(3))})
    assert list(leaves) == ["attention/query", "attention/key", "attention/value"]


def test_two_leaves_with_one_path_are_an_error():
    with pytest.raises(ValueError, match="several leaves share the path 'a/b'"):
        leaves_by_path({"a/b": jnp.ones(1), "a": {"b": jnp.ones(2)}})


def test_selecting_a_leaf_that_is_not_there_names_it_and_those_that_are():
    with pytest.raises(ValueError, match=r"no leaf at \['v'\] in this tree, whose leaves are \['w'\]"):
        select({"w": jnp.ones(2)}, {"v": None})
