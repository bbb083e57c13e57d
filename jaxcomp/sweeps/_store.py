"""Results on disk: every finished chunk is one file, which appears whole or not at all."""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcomp._fingerprint import differing
from jaxcomp.sweeps._groups import stack
from jaxcomp.sweeps._skeleton import build, skeleton

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1
_WHOSE, _CLAIMS = "sweep.json", "claims"


class Store(Mapping[str, Any]):
    """A folder of results by `jaxcomp.config_key`; a mapping, which reads from disk when it is asked.

    A chunk is written under another name, flushed to the disk and then renamed: whoever is killed leaves nothing
    half-written behind. There is no pickle in it: arrays as ``.npz`` and their structure as JSON.

    Several processes may work on one store, on one machine or on a file system with locks that all of them see. What
    one computes it claims, so that the others do something else; the claims of a process die with it. (On Windows there
    are no claims: give each process configurations of its own.) Threads of one process do not see each other's claims.

    Args:
        path: of the folder, made if need be.

    >>> import tempfile
    >>> from jaxcomp.sweeps._identity import config_key
    >>> key = config_key({"density": 0.5})
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     store.save(store.claim([key], 1), [{"loss": np.float32(0.25)}])
    ...     print(len(store), store[key]["loss"])
    1 0.25
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, tuple[Path, int]] = {}
        self._diverged: set[str] = set()
        self._read: set[str] = set()
        self._last: tuple[Path | None, Any, Any] = (None, None, None)  # read whole, for the rows that follow
        self._claims: int | None = None  # opened by whoever claims, not by whoever only reads
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Any:
        """The result of a configuration.

        Raises:
            KeyError: there is none.
            ValueError: the file is damaged, or the classes of the result are not imported.
        """
        file, row = self._places[key]
        if self._last[0] != file:
            self._last = (file, *_opened(file, whole=True))
        _, about, arrays = self._last
        leaves = [_as(arrays[f"leaf{i}"][row, ...], dtype) for i, dtype in enumerate(about["dtypes"])]
        return build(about["structure"], leaves)

    def diverged(self, key: str) -> bool:
        """Whether the result was saved as one that has diverged."""
        return key in self._diverged

    def close(self) -> None:
        """Give all claims back."""
        if self._claims is not None:
            os.close(self._claims)
            self._claims = None

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def refresh(self) -> None:
        """Take note of what other processes have finished."""
        names = {entry.name for entry in os.scandir(self.path) if entry.name.endswith(".npz")}
        for name in sorted(names - self._read):
            file = self.path / name
            self._note(file, _opened(file)[0])

    def belong(self, identity: dict[str, Any]) -> None:
        """Make the store that of a sweep, or see that it is.

        Raises:
            ValueError: it belongs to another one; says in what they differ.
        """
        file = self.path / _WHOSE
        self._lock(0, wait=True)
        try:
            if not file.exists():
                _write(file, json.dumps({"format": _FORMAT} | identity, indent=2).encode())
            found = json.loads(file.read_text())
        finally:
            self._unlock(0)
        differences = differing(found, {"format": _FORMAT} | identity)
        if differences:
            raise ValueError(
                f"{self.path} holds another sweep:\n  " + "\n  ".join(differences) + "\n"
                f"Take another folder; or, if its results are still right, remove {file}, and they count as this one's"
            )

    def claim(self, keys: Sequence[str], count: int) -> list[str]:
        """Up to so many of these that are not done, for this process alone to compute; waits if others do them all.

        Empty if they are done by now.
        """
        ours: list[str] = []
        for key in keys:
            if len(ours) == count:
                break
            if self._lock(_place(key), wait=False):
                ours.append(key)
        if keys and not ours:
            self._lock(_place(keys[0]), wait=True)  # until it is done, or whoever did it is dead
            ours = [keys[0]]
        self.refresh()
        self.release([key for key in ours if key in self])
        return [key for key in ours if key not in self]

    def release(self, keys: Sequence[str]) -> None:
        """Give claims back."""
        for key in keys:
            self._unlock(_place(key))

    def save(self, keys: Sequence[str], results: Sequence[Any], diverged: Sequence[bool] | None = None) -> None:
        """Write the results of claimed configurations, which have one structure, at once.

        Raises:
            ValueError: the results hold an object that JSON cannot describe.
        """
        structure, leaves = skeleton(stack(results))
        about = {
            "keys": list(keys),
            "diverged": [bool(lost) for lost in diverged or [False] * len(keys)],
            "structure": structure,
            "dtypes": [leaf.dtype.name for leaf in leaves],
        }
        held = io.BytesIO()
        arrays = {f"leaf{i}": _plain(leaf) for i, leaf in enumerate(leaves)}
        np.savez(held, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        # Named by a configuration that is ours alone: nobody else writes to this file, now or after we are killed.
        file = self.path / f"{keys[0]}.npz"
        _write(file, held.getbuffer())
        self._note(file, about)

    def _note(self, file: Path, about: dict[str, Any]) -> None:
        self._read.add(file.name)
        self._places |= {key: (file, row) for row, key in enumerate(about["keys"])}
        self._diverged |= {key for key, lost in zip(about["keys"], about["diverged"], strict=True) if lost}

    def _lock(self, place: int, *, wait: bool) -> bool:
        """Lock one byte of the file of claims; the kernel unlocks it when the process ends, however it does."""
        if fcntl is None:
            return True
        if self._claims is None:
            self._claims = os.open(self.path / _CLAIMS, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, place: int) -> None:
        if self._claims is not None:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, place)


def _place(key: str) -> int:
    """The byte that stands for a configuration: any of 2**60, none of them the first."""
    return 1 + int(key[:15], 16)


def _write(file: Path, data: Any) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile."""
    draft = file.with_name(file.name + ".draft")
    with open(draft, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(draft, file)
    if os.name == "posix":  # the new name must reach the disk too
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _opened(file: Path, *, whole: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file says of itself, and its arrays if wanted."""
    try:
        with open(file, "rb") as data, np.load(data, allow_pickle=False) as held:
            about = json.loads(held["about"].tobytes())
            return about, {name: held[name] for name in held.files if name != "about"} if whole else {}
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever zipfile, numpy or json make of damaged files
        raise ValueError(f"{file} cannot be read: remove it, and the sweep computes its configurations anew") from error


def _plain(leaf: np.ndarray) -> np.ndarray:
    """An array whose dtype numpy can write: bfloat16 and its like go as integers."""
    return leaf if leaf.dtype.kind in "biufc" else leaf.view(f"u{leaf.dtype.itemsize}")


def _as(leaf: np.ndarray, dtype: str) -> np.ndarray:
    kind = jnp.dtype(dtype)  # which knows bfloat16
    return leaf if leaf.dtype == kind else leaf.view(kind)
