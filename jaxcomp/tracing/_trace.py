"""A workload from a traced program: every product with the leaf that feeds it, and the activations between."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxcomp._workload import Product, Workload
from jaxcomp.tracing import _flow as _flow  # tells the rules of calls and loops
from jaxcomp.tracing._origins import _Origin
from jaxcomp.tracing._program import _program
from jaxcomp.tracing._propagate import _read
from jaxcomp.tracing._walk import _Value, _Walk


def trace(apply: Callable[..., Any], params: Any, *inputs: Any) -> Workload:
    """List the matrix products of a model, each with the leaf that feeds it, by tracing the model.

    Nothing is computed, and nothing in the model says what its layers are. What a product multiplies by is a weight
    if it depends on leaves and not on the inputs; it comes from the leaf that most of its numbers are of, so a kernel
    may be reshaped, sliced, cast, masked, scaled, normalised or rounded on the way, be one of a stack that a scan
    goes through, or a slice of one matrix for several layers.

    - The products of a scan are listed once, with ``repeat`` its length; those of a loop of unknown length once, and
      those of all branches; a note says so.
    - Of two leaves multiplied the larger is the weights; of two activations the right one, with ``weighted`` 0 and no
      path. Products of constants alone are left out: they are computed when the program is compiled.
    - Places in the padding of a convolution are multiplied, zeros between the pixels of a transposed one are not: it
      is listed as the convolution that finds ``stride ** 2`` sub-pixels as channels.
    - A product of several leaves laid side by side, whose outputs so are too, is listed as one of each.
    - A product has no path, and `Workload.unattributed` says why, where its weights are of several leaves alike
      (added up, multiplied, interleaved), or are a constant of the program.
    - Activations are stored once: pads, views and concatenations take no memory, and an elementwise operation
      overwrites what nothing else needs. Weights, constants and random numbers are no activations.

    Args:
        apply: ``apply(params, *inputs)`` gives the outputs: arrays in any pytree.
        params: any pytree of arrays or of `jax.ShapeDtypeStruct`: of flax linen or nnx, equinox, or plain.
        inputs: arrays, `jax.ShapeDtypeStruct` or pytrees of them; what is no array is handed through as it is.

    Multiplications equal the published or the closed count for ResNet-18 (1 814 073 344 at 224 pixels), MobileNetV1
    and V2, AMC's channels (293.9 of 568.7 M), a GRU and BERT-base, and the most numbers alive at once those of MCUNet's
    counter (311 040): `tests/tracing/test_trace.py`. It takes 1.0 to 1.3 times one `jax.make_jaxpr` of these, of
    which it does one, and 2.1 to 2.6 times where no library surrounds the operations: ``python -m benchmarks tracing``.

    >>> import jax, jax.numpy as jnp
    >>> def perceptron(params, x):
    ...     hidden = jax.nn.relu(x @ params["w1"].T * params["scale"])
    ...     return hidden @ params["w2"]
    >>> params = {"w1": jnp.ones((3, 4)), "scale": jnp.ones(()), "w2": jnp.ones((3, 2))}
    >>> workload = trace(perceptron, params, jax.ShapeDtypeStruct((8, 4), "float32"))
    >>> [(product.path, product.macs) for product in workload]
    [('w1', 96.0), ('w2', 48.0)]
    >>> workload.live
    [56, 40]
    """
    program = _program(apply, params, inputs)
    walk = _Walk()
    sizes = {path: math.prod(x.shape) for path, x in program.leaves.items()}
    args = [_Value(_Origin((path,), size)) for path, size in sizes.items()]
    for path, x in program.inputs.items():
        size = math.prod(x.shape)
        args.append(_Value(_Origin((), size, data=True), walk.storage.stored(f"input {path}", size, -1)))
    outputs = walk.run(program.jaxpr, args, [True] * len(args))
    walk.storage.store_all()
    for output in outputs:
        if output.held:
            walk.storage.touch(output.held, len(walk.products))
    read = _read(program.jaxpr)
    return Workload(
        tuple(_finished(walk.products, sizes)),
        walk.storage.tensors(),
        tuple(walk.unattributed),
        tuple(walk.lookups),
        tuple(leaf for number, leaf in enumerate(sizes.items()) if number in read),
        tuple(walk.notes),
    )


def _finished(products: Sequence[Product], sizes: Mapping[str, int]) -> Iterator[Product]:
    """With names that tell them apart, and every leaf stored once, whole, by the products that it feeds.

    A leaf of more numbers than it feeds in all is a stack of layers, of which each step of a scan takes one.
    """
    fed, seen, left = Counter[str | None](), Counter[str](), dict(sizes)
    for product in products:
        fed[product.path] += product.weights
    for product in products:
        seen[product.name] += 1
        name = f"{product.name} #{seen[product.name]}" if seen[product.name] > 1 else product.name
        copies = product.weighted
        if product.path:
            wanted = product.weights * max(1, sizes[product.path] / fed[product.path])
            copies = min(wanted, left[product.path]) / product.weights
            left[product.path] -= copies * product.weights
        changed = (name, copies) != (product.name, product.copies)
        yield dataclasses.replace(product, name=name, copies=copies) if changed else product
