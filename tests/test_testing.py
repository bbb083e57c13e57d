"""check_constraint passes a user's own set, and names the property that a faulty one breaks."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jaxcomp as jc
from jaxcomp.testing import check_constraint


def constraint(cls):
    return jc.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@constraint
class Ball(jc.Constraint):
    """The example of `Constraint`: weights of norm at most a radius. Each fault below is in one method of it."""

    radius: float = 1.0

    def project(self, x):
        return (x * jnp.minimum(1, self.radius / jnp.linalg.norm(x))).astype(x.dtype)


@constraint
class Widens(Ball):
    def project(self, x):
        return super().project(x).astype(jnp.float32)


@constraint
class DividesByZero(Ball):
    def project(self, x):
        return (self.radius * x / jnp.linalg.norm(x)).astype(x.dtype)


@constraint
class StopsShort(Ball):
    def project(self, x):
        return (x + super().project(x)) / 2


@constraint
class IsNotNearest(Ball):
    def project(self, x):
        return jnp.where(jnp.linalg.norm(x) <= self.radius, x, super().project(x) / 2).astype(x.dtype)


@constraint
class HidesNaN(Ball):
    def project(self, x):
        return super().project(jnp.nan_to_num(x))


@constraint
class FreeTangent(Ball):
    def tangent(self, x, v):
        return v


@constraint
class NegativeViolation(Ball):
    def violation(self, x):
        return jnp.linalg.norm(x) - self.radius


@constraint
class HidesNaNInViolation(Ball):
    def violation(self, x):
        return jnp.nan_to_num(super().violation(x))


@constraint
class Miscounts(Ball):
    def footprint(self, x):
        return dataclasses.replace(super().footprint(x), nonzeros=jnp.int32(-1))


@constraint
class Impure(Ball):
    def project(self, x):
        return super().project(x) if isinstance(x, jax.core.Tracer) else super().project(x) / 2


@constraint
class Asks(Ball):
    def project(self, x):
        return x if jnp.linalg.norm(x) <= self.radius else super().project(x)


@constraint
class Bakes(Ball):
    radius: float = dataclasses.field(metadata={"static": True})


@constraint
class Validates(Ball):
    def __post_init__(self):
        if float(self.radius) < 0:
            raise ValueError("negative radius")


@dataclasses.dataclass(frozen=True)
class Unregistered(jc.Constraint):
    pass


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_user_s_own_constraint_passes(dtype):
    check_constraint(Ball(0.5), jax.random.normal(jax.random.key(0), (4, 3)).astype(dtype))


@pytest.mark.parametrize(
    "faulty, message",
    [
        (Widens(), r"project returns float32\[4, 3\], expected the leaf's shape and dtype"),
        (DividesByZero(), "project makes NaN or infinity of finite weights"),
        (StopsShort(), "project moves its own result"),
        (IsNotNearest(), r"project moves by .* but a member lies at .*exact\(shape\)"),
        (Bakes(0.5), "has a static number, radius: .*make it a leaf"),
        (Asks(), "project needs values that are traced"),
        (HidesNaN(), "project hides nan"),
        (FreeTangent(), r"x \+ tangent\(x, v\) has violation"),
        (NegativeViolation(), "violation is -.*, project moves by 0"),
        (HidesNaNInViolation(), "violation hides nan: it must not be finite"),
        (Miscounts(), "footprint has -1 nonzeros, the leaf 12"),
        (Impure(), "project differs under jax.jit from a plain call"),
        (Validates(), "reads leaves when rebuilt"),
        (Unregistered(), "is not a pytree: register the class"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, jc.Constraint) else "",
)
def test_a_faulty_constraint_fails_by_the_name_of_what_it_breaks(faulty, message):
    x = jax.random.normal(jax.random.key(0), (4, 3)).astype(jnp.bfloat16)
    with pytest.raises(AssertionError, match=message) as error:
        check_constraint(faulty, x)
    assert str(error.value).startswith(f"{faulty} on bfloat16[4, 3]: ")


def test_exactness_may_be_waived():
    check_constraint(IsNotNearest(), jax.random.normal(jax.random.key(0), (4, 3)), exact=False)


def test_a_constraint_that_cannot_apply_is_a_value_error():
    with pytest.raises(ValueError, match="density must lie in"):
        check_constraint(jc.Sparse(2.0), jnp.ones(3))


@pytest.mark.parametrize("constraint", [jc.Box(-1.0, 1.0), jc.L1Ball(0.3)], ids=["box", "l1 ball"])
def test_a_single_number_is_a_leaf_too(constraint):
    check_constraint(constraint, jnp.float32(0.5))


def test_a_class_whose_program_another_may_get_is_refused():
    kinds = [dataclasses.make_dataclass("Own", [], frozen=True, bases=(Ball,)) for _ in range(2)]
    one, other = (jax.tree_util.register_dataclass(kind)() for kind in kinds)  # noqa: TID251
    if jax.tree.structure(one) != jax.tree.structure(other):
        pytest.skip("this JAX tells its classes apart")
    with pytest.raises(AssertionError, match="is what JAX takes another class for: register the class with jaxcomp"):
        check_constraint(one, jax.random.normal(jax.random.key(0), (4, 3)))
