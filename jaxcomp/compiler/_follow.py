"""What follows a product with a kernel and is cheap beside it, done by the kernel: biases, and rectifiers.

Alone each is a pass over memory, and XLA for CPU wakes its threads for it and lets them sleep again.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from jaxcomp.compiler import native
from jaxcomp.compiler._known import bind
from jaxcomp.tracing._propagate import _CALLS, _body


def followed(program: ClosedJaxpr) -> ClosedJaxpr:
    """The same program, with products that take on what follows them, wherever they stand in it."""
    return ClosedJaxpr(_followed(program.jaxpr), program.consts)


def _followed(jaxpr: Any) -> Any:
    eqns = [eqn.replace(params={name: _inside(each) for name, each in eqn.params.items()}) for eqn in jaxpr.eqns]
    made = {var: eqn for eqn in eqns for var in eqn.outvars}
    readers = defaultdict[Any, list[int]](list)
    for number, read in enumerate([*(eqn.invars for eqn in eqns), jaxpr.outvars]):  # what is given out is read, too
        for var in read:
            if not isinstance(var, Literal):
                readers[var].append(number)
    gone, instead = set[int](), dict[int, Any]()
    for number, eqn in enumerate(eqns):
        if eqn.primitive is native.PRODUCT and (chain := _chain(number, eqns, readers, made)):
            gone |= {number, *chain.places}
            instead[chain.places[-1]] = chain.together(eqn, eqns, made)
    kept = [instead.get(number, eqn) for number, eqn in enumerate(eqns) if number in instead or number not in gone]
    return jaxpr.replace(eqns=kept)


def _inside(param: Any) -> Any:
    if isinstance(param, ClosedJaxpr):
        return followed(param)
    return tuple(map(_inside, param)) if type(param) is tuple else param  # JAX has tuples with names, too


class _Chain(NamedTuple):
    """What a product takes on.

    Attributes:
        places: of the operations, in order: those that matter, and changes of shape between them.
        bias: the vector that is added, if one is.
        relu: whether it ends with a rectifier.
    """

    places: Sequence[int] = ()
    bias: Any = None
    relu: bool = False

    def together(self, product: Any, eqns: Sequence[Any], made: Mapping[Any, Any]) -> Any:
        """One operation in their place."""
        inputs = [*product.invars, *([self.bias] if self.bias else [])]
        steps = [product, *(eqns[place] for place in self.places)]
        last = steps[-1]

        def run(*args: Any) -> Any:
            known = dict(zip(inputs, args, strict=True))

            def value(var: Any) -> Any:
                if isinstance(var, Literal):
                    return var.val
                if var not in known:  # a layout of the bias
                    known[var] = bind(made[var], *map(value, made[var].invars))[0]
                return known[var]

            for eqn in steps:
                known.update(zip(eqn.outvars, bind(eqn, *map(value, eqn.invars)), strict=True))
            return known[last.outvars[0]]

        jaxpr = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in inputs))
        params = dict(product.params, relu=self.relu, jaxpr=jaxpr)
        return product.replace(primitive=native.FOLLOWED, invars=inputs, outvars=last.outvars, params=params)


def _chain(
    number: int, eqns: Sequence[Any], readers: Mapping[Any, Sequence[int]], made: Mapping[Any, Any]
) -> _Chain | None:
    """What follows a product as far as it can take it on, if it can take on anything."""
    (y,) = eqns[number].outvars
    columns, chain, places = y.aval.shape[-1], _Chain(), list[int]()
    while not chain.relu and len(readers[y]) == 1 and readers[y][0] < len(eqns):
        places.append(readers[y][0])
        eqn = eqns[places[-1]]
        if _rectifies(eqn):
            chain = _Chain(tuple(places), chain.bias, True)
        elif eqn.primitive.name == "add" and chain.bias is None:
            bias = _vector(next(var for var in eqn.invars if var is not y), columns, made)
            if bias is None or eqn.outvars[0].aval.shape != y.aval.shape:
                break
            chain = _Chain(tuple(places), bias)
        elif eqn.primitive.name != "reshape" or eqn.outvars[0].aval.shape[-1:] != (columns,):
            break
        (y,) = eqn.outvars
    return chain if chain.places else None


def _vector(var: Any, columns: int, made: Mapping[Any, Any]) -> Any:
    """The vector with a number for every column that this is a layout of, if it is one."""
    while not isinstance(var, Literal) and var.aval.dtype == jnp.float32 and var.aval.shape[-1:] == (columns,):
        if var.aval.shape == (columns,):
            return var
        eqn = made.get(var)
        if eqn is None or eqn.primitive.name not in ("reshape", "broadcast_in_dim"):
            return None
        if eqn.params.get("broadcast_dimensions", (var.aval.ndim - 1,))[-1:] != (var.aval.ndim - 1,):
            return None
        var = eqn.invars[0]
    return None


def _rectifies(eqn: Any) -> bool:
    """Whether it is ``max(x, 0)``, or a call of nothing else."""
    if eqn.primitive.name in _CALLS:
        body = _body(eqn)
        body = getattr(body, "jaxpr", body)
        if not len(eqn.invars) == len(body.eqns) == 1:
            return False
        (one,) = body.eqns
        return [*body.outvars] == [*one.outvars] and _rectifies(one)
    return eqn.primitive.name == "max" and any(isinstance(var, Literal) and var.val == 0 for var in eqn.invars)
