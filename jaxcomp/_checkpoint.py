"""A run on disk: one Orbax checkpoint a round, and a manifest that tells one run from another."""

import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.tree_util import keystr, tree_flatten_with_path

_VERSION = 1


class Checkpoints:
    """The checkpoints of one run in a directory of its own.

    Args:
        directory: made if need be.
        manifest: what must agree for a run to be the same, as `manifest` makes it.
        resume: whether a run found there is to be gone on with.
        keep: how many rounds to keep on disk.

    Raises:
        ValueError: the directory holds a run and `resume` is false, or a run whose manifest differs, or one whose last
            checkpoint is damaged.
    """

    def __init__(self, directory: str | os.PathLike, manifest: dict[str, Any], *, resume: bool, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(Path(directory).absolute(), options=options)
        self._manifest = manifest
        self.latest, self.history = self._manager.latest_step(), []
        if self.latest is None:
            return
        if not resume:
            raise ValueError(
                f"{directory} holds a run already, at round {self.latest}: pass resume=True to go on with it, "
                "or another directory"
            )
        notes = self._read(notes=ocp.args.JsonRestore())
        self.history = notes["history"]
        differences = _differences(notes["manifest"], manifest)
        if differences:
            raise ValueError(
                f"{directory} holds another run, which cannot be resumed as this one:\n  " + "\n  ".join(differences)
            )

    def save(self, round: int, carry: Any, history: list[dict]) -> None:
        """Write in the background; a checkpoint appears whole or not at all."""
        notes = {"manifest": self._manifest, "history": history}
        args = ocp.args.Composite(carry=ocp.args.StandardSave(_flat(carry)), notes=ocp.args.JsonSave(notes))
        self._manager.save(round, args=args)

    def restore(self, like: Any) -> Any:
        """The carry of the latest round, in the structure of ``like``."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flat(like))
        flat = self._read(carry=ocp.args.StandardRestore(abstract))
        return jax.tree.unflatten(jax.tree.structure(like), flat.values())

    def _read(self, **item: Any) -> Any:
        """One item of the latest checkpoint."""
        (name,) = item
        try:
            return self._manager.restore(self.latest, args=ocp.args.Composite(**item))[name]
        except Exception as error:  # whatever Orbax, tensorstore or json make of damaged files
            folder = self._manager.directory / str(self.latest)
            raise ValueError(
                f"{folder} cannot be read as a checkpoint of this run: remove it to go on from the one before, if any, "
                "or start anew in another directory"
            ) from error

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.close()


def manifest(carry: Any, batches: Any, solver: Any, hold: dict[str, Any], **plan: Any) -> dict[str, Any]:
    """What a run is made of: what it starts from, its solver and constraints, its length.

    Of the optimiser only the state is known, and of data only the shape.
    """
    return {
        "version": _VERSION,
        "plan": plan,
        "solver": {"class": type(solver).__name__} | _values(solver),
        "spec": {path: repr(jax.tree.map(_value, constraint)) for path, constraint in solver.spec.items()},
        "hold": {path: repr(jax.tree.map(_value, constraint)) for path, constraint in hold.items()},
        "params": _values(carry.params),
        "model_state": _values(carry.model_state),
        "optimizer": _shapes(carry.opt_state),
        "batches": "callable" if callable(batches) else _shapes(batches),
    }


def _leaves(tree: Any) -> dict[str, Any]:
    return {keystr(keys, simple=True, separator="/"): leaf for keys, leaf in tree_flatten_with_path(tree)[0]}


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves under numbered names, in order: Orbax would take a '/' for a folder."""
    return {f"{i:04d} {path.replace('/', '.')}": leaf for i, (path, leaf) in enumerate(_leaves(tree).items())}


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype.name}{list(leaf.shape)}"


def _shapes(tree: Any) -> dict[str, str]:
    return {path: _shape(leaf) for path, leaf in _leaves(tree).items()}


def _value(leaf: Any) -> Any:
    """A scalar as it is, an array by shape and digest."""
    keys = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    leaf = jax.random.key_data(leaf) if keys else leaf
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # the digest is of all that processes hold
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    value = np.asarray(leaf)
    digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:12]
    return value.item() if value.ndim == 0 else f"{_shape(value)} {digest}"


def _values(tree: Any) -> dict[str, Any]:
    return {path: _value(leaf) for path, leaf in _leaves(tree).items()}


def _differences(found: Any, expected: Any, path: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [*expected, *(key for key in found if key not in expected)]
        return [line for k in keys for line in _differences(found.get(k), expected.get(k), f"{path}/{k}".strip("/"))]
    same = found == expected or (found != found and expected != expected)
    return [] if same else [f"{path}: found {found}, expected {expected}"]
