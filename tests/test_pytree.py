"""A dataclass is a pytree of a structure that no other class has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp as jc


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    left: object
    name: str = dataclasses.field(metadata={"static": True})
    right: object = None


def some_class(value):
    """One of many that differ by a method alone."""
    method = {"value": lambda self: 0 * self.x + value}
    return dataclasses.make_dataclass("Same", ["x"], frozen=True, namespace=method)


def test_what_is_taken_apart_is_put_together():
    pair = Pair({"a": 1.0}, "n", (2.0, 3.0))
    leaves, structure = jax.tree.flatten(pair)
    assert leaves == [1.0, 2.0, 3.0]
    assert jax.tree.unflatten(structure, leaves) == pair
    assert structure == jax.tree.structure(dataclasses.replace(pair, left={"a": 5.0}))
    assert structure != jax.tree.structure(dataclasses.replace(pair, name="m"))


def test_paths_are_names_of_fields():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(Pair({"a": 1}, "n", (2, 3)))]
    assert paths == [".left['a']", ".right[0]", ".right[1]"]


def test_of_classes_that_look_alike_each_has_its_own_program():
    """Registered by JAX 0.10.2, a fifth of so many classes ran the program of another."""
    compiled = jax.jit(lambda x: x.value())
    kinds = [jc.register_dataclass(some_class(value)) for value in range(150)]
    assert len({jax.tree.structure(kind(0)) for kind in kinds}) == len(kinds)
    assert not any(jax.tree.structure(kind(0)) == jax.tree.structure(kinds[0](0)) for kind in kinds[1:])
    np.testing.assert_array_equal([compiled(kind(jnp.float32(1))) for kind in kinds], range(len(kinds)))


def test_levels_that_look_alike_are_not_taken_for_one_another():
    """As they were: binary weights came out ternary, and powers of two evenly spaced."""
    alike = [jc.Uniform(3), jc.PowerOfTwo(3)], [jc.Binary(), jc.Ternary()]
    for one, other in alike:
        assert jax.tree.structure(one) != jax.tree.structure(other)


@pytest.mark.parametrize(
    "cls, error, message",
    [
        (object, TypeError, "takes a dataclass, found <class 'object'>"),
        (Pair(1, "n"), TypeError, "takes a dataclass, found Pair"),
        (
            dataclasses.make_dataclass("Late", [("made", int, dataclasses.field(init=False))]),
            ValueError,
            "Late cannot be rebuilt: its constructor does not take made",
        ),
    ],
)
def test_what_cannot_be_registered_is_refused(cls, error, message):
    with pytest.raises(error, match=message):
        jc.register_dataclass(cls)
