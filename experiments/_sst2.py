"""SST-2, sentences of film reviews for or against, packed several to a row so that little is padding."""

import csv
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

import jaxcomp as jc
from experiments._data import FOLDER_VARIABLE
from experiments._errors import UsageError

SPLITS = ("train", "dev", "test")


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Sentences in rows of one length.

    Attributes:
      tokens: int32 ``[rows, length]``, 0 for padding.
      segments: int32 ``[rows, length]``, which sentence of the row a token belongs to, from 1; 0 for padding.
      positions: int32 ``[rows, length]``, places within the sentences.
      labels: int32 ``[rows, sentences]``, 1 for a good review, 0 for a bad one, -1 where there is no sentence.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Rows":
        return jax.tree.map(lambda array: array[index], self)


def load(split: str) -> tuple[list[str], list[int]]:
    """The sentences of a split and their labels.

    | train | dev | test |
    |---|---|---|
    | 6920 | 872 | 1821 |

    Raises:
      UsageError: ``text/sst2/SPLIT.tsv`` is not in ``$JAXCOMP_DATA``.
    """
    path = Path(os.environ.get(FOLDER_VARIABLE, "../shared/data")) / "text" / "sst2" / f"{split}.tsv"
    if not path.is_file():
        raise UsageError(
            f"there is no {path}: name the folder that holds text/sst2/{split}.tsv by ${FOLDER_VARIABLE}: a header, "
            "then a sentence, a tab and 0 or 1 a line."
        )
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return [sentence for sentence, _ in lines], [int(label) for _, label in lines]


def packed(
    sentences: Sequence[str],
    labels: Sequence[int],
    tokenize: Callable[[str, int], list[int]],
    *,
    length: int,
    most: int,
    seed: int = 0,
) -> Rows:
    """Sentences in random order, each in the first row that has room for it.

    Args:
      sentences, labels: as from `load`.
      tokenize: ``(sentence, length) -> tokens``, at most so many.
      length: of a row.
      most: sentences in a row.
      seed: of the order.
    """
    n = len(sentences)
    tokens, segments, positions = np.zeros((3, n, length), np.int32)
    found = np.full((n, most), -1, np.int32)
    used, count = np.zeros(n, int), np.zeros(n, int)
    for i in np.random.default_rng(seed).permutation(n):
        pieces = tokenize(sentences[i], length)
        row = np.argmax((used + len(pieces) <= length) & (count < most))
        place = row, slice(used[row], used[row] + len(pieces))
        tokens[place], segments[place], positions[place] = pieces, count[row] + 1, np.arange(len(pieces))
        found[row, count[row]] = labels[i]
        used[row] += len(pieces)
        count[row] += 1
    return Rows(tokens, segments, positions, found)[: np.count_nonzero(count)]
