"""The product of rows with a packed matrix as one operation of JAX: a kernel where it is run, plain XLA elsewhere."""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
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


def product(form: Kernel, x: jax.Array) -> jax.Array:
    """``[rows, columns]``, the product of rows ``[rows, depth]`` in float32."""
    arrays, structure = jax.tree.flatten(form)
    return PRODUCT.bind(x, *arrays, structure=structure)


def plain(x: jax.Array, *arrays: jax.Array, structure: Any) -> jax.Array:
    """The operation as XLA does it alone."""
    return _form(arrays, structure).plain(x)


def _form(arrays: Any, structure: Any) -> Kernel:
    return jax.tree.unflatten(structure, arrays)


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


_plain_rule = mlir.lower_fun(plain, multiple_results=False)


def _kernel_rule(ctx: Any, *operands: Any, structure: Any) -> Any:
    # What is exported is to run where nobody has heard of the kernel; and a form may have come from another machine.
    if ctx.module_context.lowering_parameters.for_export or missing():
        return _plain_rule(ctx, *operands, structure=structure)
    form = _form(ctx.avals_in[1:], structure)
    return jax.ffi.ffi_lowering(form.kernel)(ctx, *operands)


ad.primitive_jvps[PRODUCT] = _derivative
batching.primitive_batchers[PRODUCT] = _mapped
mlir.register_lowering(PRODUCT, _plain_rule)
mlir.register_lowering(PRODUCT, _kernel_rule, platform="cpu")
