"""Text into pieces of words: BERT's uncased tokeniser."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

_LONGEST = 100  # characters; longer words are unknown


@dataclass(frozen=True)
class WordPiece:
    """Numbers of the longest pieces of a vocabulary, word by word, that make up a text.

    Text is lower-cased and stripped of accents and control characters; it is cut at white space, and around every
    punctuation mark and ideograph. A word that the pieces cannot make up is unknown as a whole.

    Args:
        vocabulary: the number of every piece; one that goes on inside a word begins with ``##``.

    >>> vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##fold", "##ing", "!"]
    >>> WordPiece({piece: i for i, piece in enumerate(vocabulary)})("Unfolding! xyz")
    [2, 4, 5, 6, 7, 1, 3]

    Reference: Devlin et al., BERT, 2019; Schuster and Nakajima, Japanese and Korean Voice Search, 2012.
    """

    vocabulary: Mapping[str, int]

    def __call__(self, text: str, length: int | None = None) -> list[int]:
        """The pieces between a [CLS] and a [SEP]; cut to `length` of them in all, if it is given."""
        pieces = [piece for word in _words(text) for piece in self._pieces(word)]
        kept = pieces if length is None else pieces[: length - 2]
        return [self.vocabulary["[CLS]"], *kept, self.vocabulary["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        unknown, found, start = [self.vocabulary["[UNK]"]], [], 0
        if len(word) > _LONGEST:
            return unknown
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self.vocabulary), None)
            if end is None:
                return unknown
            found.append(self.vocabulary[prefix + word[start:end]])
            start = end
        return found


def _words(text: str) -> list[str]:
    text = "".join(_spaced(character) for character in text)
    text = "".join(c.lower() for c in unicodedata.normalize("NFD", text))  # one by one: no final sigma
    text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()


def _spaced(character: str) -> str:
    """White space as a space, nothing for a control character, an ideograph between spaces."""
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if character in "\0\ufffd" or unicodedata.category(character).startswith("C"):
        return ""
    return f" {character} " if _is_ideograph(character) else character


def _is_punctuation(character: str) -> bool:
    """Anything printable in ASCII that is neither letter nor digit counts as such."""
    plain = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return plain or unicodedata.category(character).startswith("P")


def _is_ideograph(character: str) -> bool:
    return "CJK UNIFIED IDEOGRAPH" in unicodedata.name(character, "")
