"""The product of rows with a packed matrix as one operation of JAX: a kernel where it is run, plain XLA elsewhere.

A second operation is the product with what follows it done by the same kernel: a bias added, and a rectifier.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxcomp.compiler.native._library import missing


class Kernel(Protocol):
    """A packed matrix with a kernel: a pytree whose leaves are what the kernel takes after the rows, in this order."""

    @property
    def columns(self) -> int: ...

    @property
    def kernel(self) -> str:
        """The name that XLA knows it by."""
        ...

    def plain(self, x: jax.Array) -> jax.Array:
        """The same product without it: for exports, for derivatives, for other platforms and other dtypes."""
        ...


PRODUCT = Primitive("packed_product")
FOLLOWED = Primitive("followed_product")


def product(form: Kernel, x: jax.Array) -> jax.Array:
    """``[rows, columns]``, the product of rows ``[rows, depth]`` in float32."""
    arrays, structure = jax.tree.flatten(form)
    return PRODUCT.bind(x, *arrays, structure=structure)


def plain(x: jax.Array, *arrays: jax.Array, structure: Any) -> jax.Array:
    """The operation as XLA does it alone."""
    return _form(arrays, structure).plain(x)


def _form(arrays: Any, structure: Any) -> Kernel:
    return jax.tree.unflatten(structure, arrays)


def _kernel(x: jax.Array, *others: jax.Array, structure: Any, relu: bool = False) -> jax.Array:
    """The product by its kernel; after the packed arrays may come the bias of every column."""
    arrays, bias = others[: structure.num_leaves], others[structure.num_leaves :] or (jnp.zeros((0,)),)
    form = _form(arrays, structure)
    shape = jax.ShapeDtypeStruct((x.shape[0], form.columns), jnp.float32)
    return jax.ffi.ffi_call(form.kernel, shape)(x, *bias, *arrays, relu=relu)


def _register(operation: Primitive, plain: Callable[..., jax.Array], kernel: Callable[..., jax.Array]) -> None:
    """Have it done by a kernel on CPUs, and by plain XLA elsewhere."""
    plain_rule, kernel_rule = (mlir.lower_fun(each, multiple_results=False) for each in (plain, kernel))

    def lowered(ctx: Any, *operands: Any, **params: Any) -> Any:
        # What is exported is to run where nobody has heard of the kernel; a form may have come from another machine.
        known = not ctx.module_context.lowering_parameters.for_export and not missing()
        return (kernel_rule if known else plain_rule)(ctx, *operands, **params)

    mlir.register_lowering(operation, plain_rule)
    mlir.register_lowering(operation, lowered, platform="cpu")


PRODUCT.def_impl(jax.jit(PRODUCT.bind, static_argnames="structure"))


@PRODUCT.def_abstract_eval
def _shape(x: Any, *arrays: Any, structure: Any) -> Any:
    return jax.core.ShapedArray((x.shape[0], _form(arrays, structure).columns), jnp.float32)


def _derivative(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    y, (_, *arrays), (change, *others) = PRODUCT.bind(*primals, **params), primals, tangents
    if all(isinstance(each, ad.Zero) for each in others):  # it is linear in the rows
        return y, plain(ad.instantiate_zeros(change), *arrays, **params)
    filled = tuple(map(ad.instantiate_zeros, tangents))
    return y, jax.jvp(functools.partial(plain, **params), tuple(primals), filled)[1]


def _mapped(args: Any, axes: Any, **params: Any) -> tuple[Any, int]:
    x, *arrays = args
    if any(axis is not None for axis in axes[1:]):
        return jax.vmap(functools.partial(plain, **params), in_axes=tuple(axes))(*args), 0
    x = jnp.moveaxis(x, axes[0], 0)
    y = PRODUCT.bind(x.reshape(-1, x.shape[-1]), *arrays, **params)
    return y.reshape(*x.shape[:2], -1), 0


ad.primitive_jvps[PRODUCT] = _derivative
batching.primitive_batchers[PRODUCT] = _mapped
_register(PRODUCT, plain, _kernel)


# With what follows: ``jaxpr`` is the product and that, one after the other, of the rows, the packed arrays and the bias
# of every column, if there is one. All but the kernel goes by it, so derivatives are those of what it was.


def _separately(*operands: Any, jaxpr: Any, **_: Any) -> Any:
    return jaxpr_as_fun(jaxpr)(*operands)[0]


def _together(*operands: Any, jaxpr: Any, **params: Any) -> Any:
    return _kernel(*operands, **params).reshape(jaxpr.out_avals[0].shape)


def _derivative_of_both(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    moving = [place for place, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def of(*moved: Any) -> Any:
        return _separately(*(dict(enumerate(primals)) | dict(zip(moving, moved, strict=True))).values(), **params)

    return jax.jvp(of, [primals[place] for place in moving], [tangents[place] for place in moving])


def _mapped_both(args: Any, axes: Any, **params: Any) -> tuple[Any, int]:
    return jax.vmap(functools.partial(_separately, **params), in_axes=tuple(axes))(*args), 0


FOLLOWED.def_impl(jax.jit(FOLLOWED.bind, static_argnames=("structure", "relu", "jaxpr")))
FOLLOWED.def_abstract_eval(lambda *operands, jaxpr, **_: jaxpr.out_avals[0])
ad.primitive_jvps[FOLLOWED] = _derivative_of_both
batching.primitive_batchers[FOLLOWED] = _mapped_both
_register(FOLLOWED, _separately, _together)
