"""Image classification data sets: read once, kept as arrays."""

import dataclasses
import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments._errors import UsageError

DIGITS = "digits"
TFDS_NAMES = ("mnist", "fashion_mnist", "cifar10")
NAMES = (DIGITS, *TFDS_NAMES)
FOLDER_VARIABLE = "JAXCOMP_DATA"

_OTHERWISE = f", or use the data set {DIGITS!r}, which needs no files."


@dataclass(frozen=True)
class Split:
    """Labelled images, read-only.

    Attributes:
      image: float32 ``[n, height, width, channels]``, 0 (black) to 1.
      label: int32 ``[n]``, 0 to ``num_classes - 1``.
    """

    image: np.ndarray
    label: np.ndarray

    def __post_init__(self):
        for array in (self.image, self.label):  # `load` hands the same arrays to every caller
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.label)

    def first(self, n: int) -> "Split":
        """Its first images, so many or all there are."""
        return Split(self.image[:n], self.label[:n])


@dataclass(frozen=True)
class Dataset:
    """A data set and its three splits; ``test`` is never used to choose anything."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int

    def evaluated_on(self, n: int) -> "Dataset":
        """With the first images, so many or all there are, of the splits that nothing is trained on."""
        return dataclasses.replace(self, validation=self.validation.first(n), test=self.test.first(n))


def load(name: str = DIGITS, data_dir: str | os.PathLike | None = None) -> Dataset:
    """The data set called ``name``; a second call in the same process returns the same object.

    | name | images | train / validation / test | source |
    |---|---|---|---|
    | digits | 28x28x1 | 1197 / 200 / 400 | scikit-learn, no files and no network needed |
    | mnist, fashion_mnist | 28x28x1 | 55000 / 5000 / 10000 | TensorFlow Datasets |
    | cifar10 | 32x32x3 | 45000 / 5000 / 10000 | TensorFlow Datasets |

    ``digits`` are scikit-learn's 8x8 images, enlarged bilinearly to 28x28 so that networks meant for MNIST
    keep their shape, and split at random with equal class shares under a fixed seed. For the others
    validation is the last 5000 examples of the published training split, in the order of the files.

    Args:
      name: one of ``NAMES``.
      data_dir: folder of prepared TensorFlow Datasets, or the folder that contains
        ``tensorflow_datasets/``. It is only read. Default: ``$JAXCOMP_DATA``; without that, TFDS's own
        folder, into which TFDS downloads the set if it is not there.

    Raises:
      UsageError: the name is unknown, the folder does not hold the set, or the download fails.
    """
    if name not in NAMES:
        raise UsageError(f"unknown data set {name!r}: expected one of {', '.join(NAMES)}.")
    if name == DIGITS:
        return _load_digits()
    if data_dir is not None:
        return _load_tfds(name, Path(data_dir), "--data-dir")
    if os.environ.get(FOLDER_VARIABLE):
        return _load_tfds(name, Path(os.environ[FOLDER_VARIABLE]), f"${FOLDER_VARIABLE}")
    return _load_tfds(name, None, "")


@functools.lru_cache
def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    image = _enlarge(source.images / 16.0, 28)[..., None].astype(np.float32)
    label = source.target.astype(np.int32)
    rest, test = train_test_split(np.arange(len(label)), test_size=400, stratify=label, random_state=0)
    train, validation = train_test_split(rest, test_size=200, stratify=label[rest], random_state=0)
    splits = (Split(image[rows], label[rows]) for rows in (train, validation, test))
    return Dataset(DIGITS, *splits, num_classes=10)


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """Square images ``[n, s, s]`` resized bilinearly to ``[n, size, size]``; pixels end at whole numbers."""
    old = image.shape[-1]
    centres = (np.arange(size) + 0.5) * old / size - 0.5
    weights = np.stack([np.interp(centres, np.arange(old), row) for row in np.eye(old)], axis=1)
    return weights @ image @ weights.T


@functools.lru_cache
def _load_tfds(name: str, folder: Path | None, origin: str) -> Dataset:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            f"data set {name!r} is read by tensorflow-datasets, which is not installed: "
            f"`pip install tensorflow-datasets`{_OTHERWISE}"
        ) from error

    if folder is None:
        builder = _download(name)
    else:  # opened by path: asked by name, TFDS would start to prepare an absent set inside the folder
        builder = tfds.builder_from_directory(_prepared(name, folder, origin))
    image, label = _read(builder, "train")
    return Dataset(
        name,
        train=Split(image[:-5000], label[:-5000]),
        validation=Split(image[-5000:], label[-5000:]),
        test=Split(*_read(builder, "test")),
        num_classes=builder.info.features["label"].num_classes,
    )


def _prepared(name: str, folder: Path, origin: str) -> Path:
    """The folder of the newest version of the set under ``folder``."""
    roots = (folder, folder / "tensorflow_datasets")
    versions = [info.parent for root in roots for info in sorted((root / name).glob("*/dataset_info.json"))]
    if versions:
        return versions[-1]
    if folder.is_dir():
        entries = sorted(entry.name for root in roots if root.is_dir() for entry in root.iterdir())
        found = f"found there: {', '.join(entries[:20]) or 'nothing'}{', ...' * (len(entries) > 20)}"
    else:
        found = "there is no such folder"
    raise UsageError(
        f"{origin} = {str(folder)!r} does not hold the data set {name!r}: "
        f"expected {name}/<version>/dataset_info.json in it or in its tensorflow_datasets/; {found}. "
        f"Give the folder in which TFDS prepared it, or none to let TFDS download it{_OTHERWISE}"
    )


def _download(name: str):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
        return builder
    except Exception as error:  # network, disk and missing packages all end here, each with its own type
        raise UsageError(
            f"data set {name!r} is not in TFDS's own folder and TFDS could not prepare it there "
            f"({type(error).__name__}: {error}). Prepare it where there is a network and name its folder by "
            f"--data-dir or ${FOLDER_VARIABLE}{_OTHERWISE}"
        ) from error


def _read(builder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images in [0, 1] and labels of one split, in the order of the files."""
    import tensorflow_datasets as tfds
    from PIL import Image

    # One bulk read of encoded bytes, then one loop that decodes: quicker than TFDS's own decoding, and than
    # threads, because such small images do not pay for handing them over.
    try:
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:  # TFDS reads only some of its file formats without TensorFlow
        raise UsageError(
            f"{builder.data_path} holds {builder.info.file_format.value} files, which only TensorFlow reads: "
            f"expected array_record files. Prepare the set anew with file_format='array_record'{_OTHERWISE}"
        ) from error
    rows = source.__getitems__(range(len(source)))
    shape = builder.info.features["image"].shape
    image = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]))).reshape(shape) for row in rows])
    return image / np.float32(255), np.array([row["label"] for row in rows], np.int32)
