"""A run on disk: one Orbax checkpoint a round, and a manifest that tells one run from another."""

import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxcomp._fingerprint import differing, leaves_of, shapes_of, value_of, values_of

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
        differences = differing(notes["manifest"], manifest)
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
        "solver": {"class": type(solver).__name__} | values_of(solver),
        "spec": {path: repr(jax.tree.map(value_of, constraint)) for path, constraint in solver.spec.items()},
        "hold": {path: repr(jax.tree.map(value_of, constraint)) for path, constraint in hold.items()},
        "params": values_of(carry.params),
        "model_state": values_of(carry.model_state),
        "optimizer": shapes_of(carry.opt_state),
        "batches": "callable" if callable(batches) else shapes_of(batches),
    }


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves under numbered names, in order: Orbax would take a '/' for a folder."""
    return {f"{i:04d} {path.replace('/', '.')}": leaf for i, (path, leaf) in enumerate(leaves_of(tree).items())}
