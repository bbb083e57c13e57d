"""Parameters to disk, each leaf in the forms that its constraint knows of."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._assign import footprint, gather, members, scatter
from jaxcomp._paths import leaves_by_path, select
from jaxcomp.constraints import Constraint
from jaxcomp.storage._folder import MANIFEST, TENSORS, safetensors, write_folder
from jaxcomp.storage._leaf import write_leaf
from jaxcomp.storage._manifest import CODES, Leaf, write_manifest
from jaxcomp.storage._saved import Saved, SavedLeaf, described


def save(
    path: str | os.PathLike,
    params: Any,
    spec: Mapping[str, Constraint] | None = None,
    *,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> Saved:
    """Keep parameters in a folder, at the bits that the footprints of their constraints promise.

    A leaf is kept in the `Constraint.forms` of its constraint, as far as they hold of it, and read back at once: if it
    is not what it was, every weight equal (of sums: to rounding), or takes more room so, it is kept as it stands. (Of a
    packed leaf the signs of zeros are lost.) Leaves without a constraint keep every bit. Loading needs no constraint
    and runs no code.

    The folder holds ``tensors.safetensors`` (a tensor a leaf: itself, or the bytes it is packed in),
    ``manifest.json`` (shape, dtype and form of every leaf) and ``SHA256SUMS``, which ``sha256sum -c`` checks. It is
    written beside the path and then renamed: what is found there is whole.

    Args:
        path: of the folder.
        params: any pytree; leaves that are no arrays (functions, random keys) are left out.
        spec: as from `jaxcomp.assign`.
        tolerance: how far a leaf may come back from what it was, ``||x - x'|| <= tolerance * ||x||``. Left out, every
            weight is equal, but for those that are sums and so known to rounding only, of `LowRank` and `Affine`: they
            come back to the epsilon of their dtype, at most. At 0 these, too, are equal, at more bytes. What
            retraining has moved off its levels, `Quantized` without a last projection, needs some 1e-6.
        overwrite: whether to replace what `save` wrote there before.

    Raises:
        ValueError: the path is taken, the spec does not fit the tree, or a leaf's dtype has no name in safetensors.
        ImportError: safetensors is not installed.

    >>> import tempfile, jaxcomp as jc
    >>> from jaxcomp.storage import load
    >>> params = {"fc": {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}}
    >>> spec = jc.assign(params, {"fc/kernel": jc.Sparse(0.25)})
    >>> params = jc.project(spec, params)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = save(f"{folder}/model", params, spec)
    ...     same = np.array_equal(load(f"{folder}/model")["fc"]["kernel"], params["fc"]["kernel"])
    >>> saved.leaves[0].form, saved.leaves[0].bytes, saved.leaves[0].footprint_bytes, same
    ('support by elements()', 4608, 4608.0, True)
    """
    leaves = {name: np.asarray(jax.device_get(x)) for name, x in leaves_by_path(params).items()}
    unknown = {name: x.dtype.name for name, x in leaves.items() if x.dtype.name not in CODES}
    if unknown:
        raise ValueError(f"leaves of dtypes that safetensors has no name for, {unknown}: cast them to {list(CODES)}")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must lie in [0, 1), found {tolerance}: it is a share of a leaf's norm")
    numpy, spec = safetensors("safetensors.numpy"), dict(spec or {})
    constrained = {name: jnp.asarray(x) for name, x in select(leaves, members(spec)).items()}
    forms = scatter({key: spec[key].forms(x) for key, x in gather(spec, constrained).items()})
    promised = {name: float(one.bits) / 8 for name, one in _footprint(spec, constrained).items()}
    written = {name: write_leaf(forms.get(name, ()), x, tolerance) for name, x in leaves.items()}
    tensors = numpy.save({name: np.asarray(one.data, order="C") for name, one in written.items()})
    manifest = write_manifest({name: Leaf(x.shape, x.dtype, written[name].node) for name, x in leaves.items()})
    sums = write_folder(Path(path), {MANIFEST: manifest, TENSORS: tensors}, overwrite)
    kept = [
        SavedLeaf(
            name, described(one.node), x.shape, one.data.nbytes, promised.get(name, x.nbytes), x.nbytes, one.error
        )
        for (name, x), one in zip(leaves.items(), written.values(), strict=True)
    ]
    whole = len(manifest) + len(tensors) + len(sums)
    return Saved(Path(path), tuple(kept), whole - sum(leaf.bytes for leaf in kept))


_footprint = jax.jit(footprint)  # one program: every operation by itself would be compiled for every shape
