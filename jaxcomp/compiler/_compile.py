"""From a model and its constraints to a program that runs smaller and faster."""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval

from jaxcomp._assign import Spec, members
from jaxcomp._paths import replace, select
from jaxcomp.compiler import native
from jaxcomp.compiler._compiled import Compiled, CompiledReport, ProductReport, Program
from jaxcomp.compiler._follow import followed
from jaxcomp.compiler._known import Place, leaf
from jaxcomp.compiler._rewrite import Rewriter, Site, Value, Way
from jaxcomp.compiler._shrink import Removals, shrink
from jaxcomp.compiler._tune import Timings, in_turns, typical
from jaxcomp.compiler._ways import ways
from jaxcomp.tracing._program import _Program, _program
from jaxcomp.tracing._walk import _owner

_WHOLE_S = 2e-3  # of one timing of a model: one that is small is called many times, as in use


def compile(
    apply: Callable[..., Any],
    params: Any,
    spec: Spec,
    *inputs: Any,
    cache: Path | str | None = None,
    rounds: int = 9,
    portable: bool = False,
) -> Compiled:
    """Make a program that runs the compressed model faster than the model itself does, and gives what it gives.

    The model is traced. Channels that the outputs do not need are removed (`jaxcomp.shrink`). Every product
    (`dot_general`, `conv_general_dilated`) of an activation with what follows from constrained leaves is brought to a
    matrix, whatever is done to the leaves on the way: casts, masks, reshapes, scales. The structure is read from the
    zeros and the values of that matrix, not from the constraint, so sets of one's own are compiled too. Every packed
    format that fits it exactly is measured against the dense product on the shapes of the model, and the fastest is
    taken; where none is faster the product stays as it is, and so does a model that is slower as a whole.

    Products in scans, loops, branches and under `jax.jit` or `jax.checkpoint` are found; a stack of layers that a scan
    goes through is packed as a stack. The outputs are those of ``apply(params, *inputs)`` but for the order of
    additions.

    Args:
        apply: ``apply(params, *inputs)`` gives the outputs: arrays in any pytree.
        params: the compressed parameters, any pytree of arrays. Their values are read: they cannot be tracers.
        spec: `jaxcomp.assign` of the constraints; products of other leaves are left alone.
        inputs: arrays of the shapes that it will be called with, or `jax.ShapeDtypeStruct`, or pytrees of them.
        cache: a file of measurements to read and to add to, so that what was measured before is not measured again.
        rounds: how often everything is measured; with 0 nothing is, and the smallest form is taken, fast or not.
        portable: take only forms that XLA does by itself, not those with a kernel that is built for this machine's
            CPU: for `jax.export` and ONNX, where these are filled up to the nearest form of XLA's at every call.

    Returns:
        A `Compiled`: call it with inputs; ``print(compiled.report)``.

    Raises:
        ValueError: the spec names a leaf that the parameters do not have, or a leaf is a tracer.

    >>> import jax.numpy as jnp, jaxcomp as jc
    >>> params = {"w": jnp.ones((64, 32)).at[::2].set(0), "b": jnp.zeros(32)}
    >>> spec = jc.assign(params, {"w": jc.Sparse(density=0.5, view=jc.inputs())})
    >>> model = jc.compile(lambda p, x: x @ p["w"] + p["b"][None], params, spec, jnp.ones((1, 64)))
    >>> float(model(jnp.ones((1, 64)))[0, 0])
    32.0

    References: Niu et al., PatDNN, ASPLOS 2020; Dong et al., RTMobile, DAC 2020.
    """
    keys = members(spec)
    constrained = select(params, keys)
    traced = [path for path, x in constrained.items() if isinstance(x, jax.core.Tracer)]
    if traced:
        raise ValueError(f"leaf '{traced[0]}' is a tracer: compile outside of transformations, its values are read")
    dense, small = _program(apply, params, inputs), shrink(apply, params, *inputs)
    program = _program(small.apply, small.params, inputs)
    sites = _sites(program, frozenset(constrained))
    with Timings(cache, rounds) as timings:
        products, chosen, placed = _chosen(sites, timings if rounds else None, portable)
    compiled = Compiled(*_rewritten(program, sites, chosen, placed), None)
    times = _whole(dense, compiled, inputs, rounds) if rounds else np.full((1, 2), math.nan)
    dense_s, compiled_s = typical(times)
    notes, removed = [], small.removed
    if (chosen or removed) and np.quantile(times[:, 1] / times[:, 0], 0.25) > 1:  # slower in three rounds of four
        notes.append(
            f"packed, the whole took {1e6 * compiled_s:,.1f} us, and dense {1e6 * dense_s:,.1f}: it is left dense"
        )
        compiled, compiled_s, removed = Compiled(*_rewritten(dense, sites, {}, {}), None), dense_s, Removals()
        products = tuple(each.as_it_was for each in products)
    read = frozenset[str]().union(*(site.weights.leaves for site in sites.values()))
    served = {key for path, key in keys.items() if path in read}  # the others of a group, its biases say, need not be
    unread = sorted(path for path, key in keys.items() if key not in served)
    if not portable and jax.default_backend() == "cpu" and (why := native.missing()):
        notes.append(f"without kernels of its own: {why}")
    notes += [f"leaf '{path}' is read by no product that was found" for path in unread]
    report = CompiledReport(
        products, removed, dense_s, compiled_s, size(dense.leaves), size(compiled.params), tuple(notes)
    )
    return dataclasses.replace(compiled, report=report)


def _chosen(
    sites: Mapping[Place, Site], timings: Timings | None, portable: bool
) -> tuple[tuple[ProductReport, ...], dict[str, Way], dict[Place, str]]:
    """What is said of every product, the ways by name, and the places where each is taken.

    Products with the same weights share a way, under the name of the first.
    """
    products, firsts = list[ProductReport](), dict[Any, ProductReport]()
    ways, placed = dict[str, Way](), dict[Place, str]()
    for (place, site), name in zip(sites.items(), _names(sites.values()), strict=True):
        kind = _identity(site)
        if first := firsts.get(kind):
            products.append(dataclasses.replace(first, name=name, form=f"as {first.name}", dense_bytes=0, bytes=0))
        else:
            way, first = _best(name, site, timings, portable)
            firsts[kind] = first
            ways |= {name: way} if way else {}
            products.append(first)
        placed |= {place: first.name} if first.name in ways else {}
    return tuple(products), ways, placed


def _best(name: str, site: Site, timings: Timings | None, portable: bool) -> tuple[Way | None, ProductReport]:
    """The fastest way of doing a product, or where nothing is measured the smallest; ``None`` is to leave it."""
    others = ways(site, timings is None, portable)
    sizes = [size(each) for each in (site.weights.array, *others)]
    seconds = timings.seconds(site, others) if timings else [math.nan] * len(sizes)
    best = min(range(len(sizes)), key=(seconds if timings else sizes).__getitem__)
    forms = ["dense", *(way.describe() for way in others)]
    tried = tuple(zip(forms, seconds, strict=True))
    found = ProductReport(
        name, tuple(sorted(site.weights.leaves)), forms[best], sizes[0], sizes[best], seconds[0], seconds[best], tried
    )
    return (others[best - 1] if best else None), found


def _identity(site: Site) -> tuple[str, str]:
    """What products that can share their packed weights have in common: those of a recurrence written out in steps."""
    x = np.asarray(site.weights.array)
    kind = str((site.eqn.primitive, site.eqn.params, site.side, x.shape, x.dtype, site.weights.loops))
    return kind, hashlib.sha256(x.tobytes()).hexdigest()


def _sites(program: _Program, constrained: frozenset[str]) -> dict[Place, Site]:
    """The products of activations with what follows from constrained leaves."""
    rewriter = Rewriter({}, lambda leaves: bool(leaves & constrained))

    def look(leaves: dict[str, Any], data: list[Any]) -> None:
        rewriter.run(program.jaxpr, _values(program, leaves, data), {})

    jax.eval_shape(look, program.leaves, list(program.inputs.values()))
    return rewriter.sites


def _rewritten(
    program: _Program, sites: Mapping[Place, Site], chosen: Mapping[str, Way], placed: Mapping[Place, str]
) -> tuple[Any, Program]:
    """The program with the ways that were chosen by name, each at its places, and the parameters that it reads."""
    rewriter = Rewriter({place: sites[place].weights.loops for place in placed}, lambda leaves: True)

    def run(params: Any, data: list[Any]) -> list[Any]:
        here = {place: params["products"][name] for place, name in placed.items()}
        outs = rewriter.run(program.jaxpr, _values(program, params["leaves"], data), here)
        return [value.traced for value in outs]

    packed = {"leaves": program.leaves, "products": dict(chosen)}
    jaxpr = followed(jax.make_jaxpr(run)(packed, list(program.inputs.values())))
    leaves, others = len(program.leaves), len(jaxpr.jaxpr.invars) - len(program.leaves)
    # Leaves come first: keys of dictionaries are sorted, and "leaves" is before "products".
    body, read = partial_eval.dce_jaxpr(
        jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars), [False] * leaves + [True] * others
    )
    kept = {path for path, is_read in zip(sorted(program.leaves), read, strict=False) if is_read}
    packed["leaves"] = {path: x for path, x in program.leaves.items() if path in kept}
    shapes = tuple((path, tuple(x.shape), str(x.dtype)) for path, x in program.inputs.items())
    return packed, Program(ClosedJaxpr(body, jaxpr.consts), shapes, jax.tree.structure(program.outputs))


def _whole(dense: _Program, compiled: Compiled, inputs: tuple[Any, ...], rounds: int) -> np.ndarray:
    """Seconds ``[rounds, 2]`` that a call of the model takes as it was, and as compiled."""
    given = {path: _filled(x) for path, x in dense.inputs.items()}
    as_it_was = jax.jit(lambda leaves, data: jaxpr_as_fun(dense.jaxpr)(*leaves, *data))
    leaves, data = list(dense.leaves.values()), list(given.values())
    like = replace(inputs, given)
    return in_turns([lambda: as_it_was(leaves, data), lambda: compiled(*like)], rounds, _WHOLE_S)


def _filled(x: Any) -> Any:
    """An input, or where only its shape is given, one of ones."""
    return jnp.ones(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x


def _values(program: _Program, leaves: Mapping[str, Any], data: list[Any]) -> list[Value]:
    weights = [Value(leaves[path], leaf(path, x)) for path, x in program.leaves.items()]
    return [*weights, *map(Value, data)]


def _names(sites: Iterable[Site]) -> Iterator[str]:
    """What products are called: by their scopes, else by their leaf; numbered where that is not enough."""
    seen = Counter[str]()
    for site in sites:
        name = site.scope or _owner(min(site.weights.leaves))
        seen[name] += 1
        yield f"{name} #{seen[name]}" if seen[name] > 1 else name


def size(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))
