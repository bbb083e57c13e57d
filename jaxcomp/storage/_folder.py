"""The folder that parameters are kept in: tensors, a manifest, and the checksums of both; whole, or not at all."""

import hashlib
import importlib
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

TENSORS, MANIFEST, SUMS = "tensors.safetensors", "manifest.json", "SHA256SUMS"
_NAMES = {TENSORS, MANIFEST, SUMS}
_SMALL = 1 << 28  # bytes: a manifest takes some hundreds a leaf


def safetensors(module: str) -> Any:
    """A module of the package, imported when it is needed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError("saving and loading need safetensors: pip install 'jaxcomp[storage]'") from error


def write_folder(path: Path, files: dict[str, bytes], overwrite: bool) -> bytes:
    """Write beside the path, flush to the disk, and rename; the checksums, which are written too.

    Raises:
        ValueError: something is there already.
    """
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise ValueError(f"{path} is there already: pass overwrite=True, or another path")
        found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        if path.is_symlink() or not path.is_dir() or not found <= _NAMES:
            raise ValueError(f"{path} holds what jaxcomp.save did not write, {sorted(found - _NAMES)[:5]}: remove it")
    sums = _sums({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    beside = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    old = path.parent / f"{beside.name}.old"
    beside.mkdir(parents=True)
    try:
        for name, data in (files | {SUMS: sums}).items():
            with open(beside / name, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if path.exists():
            path.rename(old)
        beside.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(beside, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return sums


def read_folder(path: Path) -> tuple[bytes, bytes]:
    """The manifest and the tensors, once their checksums agree.

    Raises:
        ValueError: a file is missing, is no file, or is not the one that was written.
    """
    sums = _read(path, SUMS, 1 << 12)
    manifest, tensors = _read(path, MANIFEST, _SMALL), _read(path, TENSORS)
    found = {MANIFEST: hashlib.sha256(manifest).hexdigest(), TENSORS: hashlib.sha256(tensors).hexdigest()}
    if sums != _sums(found):
        wrong = [name for name, digest in found.items() if f"{digest}  {name}\n".encode() not in sums]
        raise ValueError(
            f"{path}: {' and '.join(wrong) or SUMS} was changed, cut off or damaged since it was saved, as "
            f"`sha256sum -c {SUMS}` says too: take another copy"
        )
    return manifest, tensors


def _sums(digests: dict[str, str]) -> bytes:
    """As `sha256sum` prints them."""
    return "".join(f"{digests[name]}  {name}\n" for name in (MANIFEST, TENSORS)).encode()


def _read(path: Path, name: str, most: int | None = None) -> bytes:
    try:
        found = os.lstat(path / name)
    except OSError as error:
        raise ValueError(f"{path} holds no saved parameters: no {name} ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path / name} is no regular file: nothing is read through links, pipes or devices")
    if most is not None and found.st_size > most:
        raise ValueError(
            f"{path / name} has {found.st_size} bytes, expected at most {most}: it is no file of jaxcomp's"
        )
    return (path / name).read_bytes()
