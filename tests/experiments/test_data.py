"""Data sets: fixed splits, and a wrong folder is an error that touches nothing."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments._data import Split, _enlarge, _prepared, load
from experiments._errors import UsageError


def entries(folder):
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_digits_have_the_stated_splits_ranges_and_types():
    data = load("digits")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1197, 200, 400]
    for split in (data.train, data.validation, data.test):
        assert split.image.shape == (len(split), 28, 28, 1) and split.image.dtype == np.float32
        assert split.image.min() == 0 and split.image.max() == 1
        assert split.label.dtype == np.int32 and set(split.label) == set(range(data.num_classes))


def test_digits_splits_share_no_image_and_have_equal_class_shares():
    data = load("digits")
    splits = (data.train, data.validation, data.test)
    images = np.concatenate([split.image for split in splits]).reshape(1797, -1)
    assert len(np.unique(images, axis=0)) == 1797
    for split in splits:
        np.testing.assert_allclose(np.bincount(split.label) / len(split), 0.1, atol=0.01)


def test_the_first_images_are_a_split_with_their_labels():
    test = load("digits").test
    first = test.first(3)
    np.testing.assert_array_equal(first.image, test.image[:3])
    assert first.label.tolist() == [7, 4, 3] and not first.image.flags.writeable
    assert len(test.first(1000)) == 400


def test_digits_are_the_same_in_every_process():
    # The split decides every published accuracy: a change of it must be seen.
    data = load("digits")
    assert data.train.label[:8].tolist() == [6, 9, 0, 7, 4, 9, 1, 3]
    assert data.test.label[:8].tolist() == [7, 4, 3, 8, 1, 9, 5, 0]


def test_enlarging_is_bilinear_resizing():
    image = np.random.default_rng(0).random((3, 8, 8), np.float32)
    np.testing.assert_allclose(_enlarge(image, 28), jax.image.resize(image, (3, 28, 28), "linear"), atol=1e-6)


def test_a_second_load_returns_the_same_arrays_and_nobody_can_change_them():
    data = load("digits")
    assert load("digits") is data
    with pytest.raises(ValueError, match="read-only"):
        data.train.image[0] = 0


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"'minst'.*digits, mnist, fashion_mnist, cifar10"):
        load("minst")


@pytest.mark.parametrize("by_variable", [False, True], ids=["--data-dir", "$JAXCOMP_DATA"])
def test_a_folder_without_the_set_is_named_with_its_content_and_left_untouched(tmp_path, monkeypatch, by_variable):
    (tmp_path / "tensorflow_datasets" / "cifar10").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("not a data set")
    before = entries(tmp_path)
    monkeypatch.setenv("JAXCOMP_DATA", str(tmp_path))
    with pytest.raises(UsageError) as error:
        load("mnist", None if by_variable else tmp_path)
    message = str(error.value)
    assert message.startswith("$JAXCOMP_DATA" if by_variable else "--data-dir")
    for part in (str(tmp_path), "'mnist'", "notes.txt", "cifar10", "'digits'"):
        assert part in message
    assert entries(tmp_path) == before


def test_a_folder_that_is_absent_is_said_to_be_absent_and_not_made(tmp_path):
    with pytest.raises(UsageError, match="there is no such folder"):
        load("mnist", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_failed_download_names_the_cause_and_the_remedies(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.delenv("JAXCOMP_DATA", raising=False)
    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(UsageError, match=r"ConnectionError: no route.*--data-dir or \$JAXCOMP_DATA.*'digits'"):
        load("mnist")


def test_files_that_only_tensorflow_can_read_are_an_error_that_names_the_format(tmp_path, shared_data):
    copy = tmp_path / "mnist" / "3.0.1"
    copy.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        shutil.copy(shared_data / "tensorflow_datasets" / "mnist" / "3.0.1" / name, copy)
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UsageError, match=r"tfrecord.*expected array_record"):
        load("mnist", tmp_path)


@pytest.mark.slow
def test_mnist_is_read_whole_and_in_the_order_of_the_files(shared_data):
    import tensorflow_datasets as tfds

    data = load("mnist", shared_data)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [55_000, 5_000, 10_000]
    source = tfds.data_source("mnist", split="train", data_dir=shared_data / "tensorflow_datasets")
    for split, rows in ((data.train, slice(0, 3)), (data.validation, slice(-3, None))):
        expected = source.__getitems__(range(60_000)[rows])
        np.testing.assert_array_equal(split.image[rows] * 255, np.stack([row["image"] for row in expected]))
        assert split.label[rows].tolist() == [row["label"] for row in expected]


def test_the_folder_may_be_that_of_tfds_or_its_parent(shared_data):
    assert _prepared("mnist", shared_data, "") == _prepared("mnist", shared_data / "tensorflow_datasets", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("fashion_mnist", [55_000, 5_000, 10_000], (28, 28, 1)),
        ("cifar10", [45_000, 5_000, 10_000], (32, 32, 3)),
    ],
)
def test_larger_sets_have_the_stated_splits(shared_data, name, sizes, shape):
    data = load(name, shared_data)
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == sizes
    assert all(split.image.shape[1:] == shape for split in splits)
    assert all(set(split.label) == set(range(10)) for split in splits)


def test_split_has_a_length():
    assert len(Split(np.zeros((3, 2, 2, 1), np.float32), np.zeros(3, np.int32))) == 3
