"""Penn Treebank, a character at a time, for a model that foretells the next one."""

import dataclasses
import functools
import os
from pathlib import Path

import jax
import numpy as np

import jaxcomp as jc
from experiments._data import FOLDER_VARIABLE
from experiments._errors import UsageError

SPLITS = ("train", "valid", "test")

_UNKNOWN = "?"  # one character for the word "<unk>", which would be foretold from its first; the text has no other


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Windows:
    """Stretches of text.

    Attributes:
      read: uint8 ``[n, length]``, characters by number.
      follow: uint8 ``[n, length]``, of each the one after it.
    """

    read: np.ndarray
    follow: np.ndarray

    def __len__(self) -> int:
        return len(self.read)

    def __getitem__(self, index) -> "Windows":
        return jax.tree.map(lambda array: array[index], self)

    def spread(self, n: int) -> "Windows":
        """So many of them at even distances, or all there are; 0 is all."""
        return self[np.linspace(0, len(self) - 1, min(n or len(self), len(self))).astype(int)]


@dataclasses.dataclass(frozen=True)
class Text:
    """The alphabet of the training split, in order of code points, and the windows of every split."""

    alphabet: str
    train: Windows
    valid: Windows
    test: Windows


@functools.lru_cache
def load(length: int) -> Text:
    """Mikolov's Penn Treebank, cut into windows that follow one another; an end that does not fill one is left out.

    | train | valid | test | alphabet |
    |---|---|---|---|
    | 4,921,538 characters | 385,842 | 430,769 | 49 |

    Raises:
      UsageError: ``text/ptb`` is not in ``$JAXCOMP_DATA``, nor in ``../shared/data``.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE, "../shared/data")) / "text" / "ptb"
    paths = [folder / f"ptb.{split}.txt" for split in SPLITS]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"there is no {path}: name the folder that holds text/ptb by ${FOLDER_VARIABLE}.")
    texts = [path.read_text(encoding="utf-8").replace("<unk>", _UNKNOWN) for path in paths]
    alphabet = "".join(sorted(set(texts[0])))
    return Text(alphabet, *(windows(text, alphabet, length) for text in texts))


def windows(text: str, alphabet: str, length: int) -> Windows:
    """Of a text whose characters are all in the alphabet, which is in order."""
    points, letters = (np.frombuffer(each.encode("utf-32-le"), np.uint32) for each in (text, alphabet))
    numbers = np.searchsorted(letters, points).astype(np.uint8)
    n = (len(numbers) - 1) // length
    return Windows(*(numbers[start : start + n * length].reshape(n, length) for start in (0, 1)))
