"""Loading a task: what it holds, what it records, and every wrong source in one line."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pixels import pixels_of
from sartor.task import DataError, Preprocessing, Split, Task, accuracy, balanced_accuracy, load_task

X = np.random.default_rng(0).integers(0, 256, (60, 8, 10, 3), dtype=np.uint8)
Y = np.arange(60) % 3


def test_digits_hold_everything() -> None:
    task = load_task("digits")
    assert task.name == "digits"
    assert task.classes == tuple("0123456789")
    assert task.example.shape == (1, 1, 8, 8)
    assert task.example.dtype == torch.float32
    assert task.metric is accuracy
    assert task.metric_name == "accuracy"
    assert task.warnings == ()
    assert all(isinstance(split, Split) for split in (task.train, task.validation, task.test))
    assert sum(task.record["sizes"].values()) == 1797
    logits = torch.zeros(2, 10)
    assert math.isclose(task.loss(logits, torch.tensor([1, 2])).item(), math.log(10), rel_tol=1e-6)


def test_digits_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    from sartor.data.digits import read_digits
    from sartor.data.source import Arrays

    part = read_digits().train
    assert isinstance(part, Arrays)
    reference = sklearn.load_digits()
    assert np.array_equal(np.rint(part.images / 255 * 16), reference.images)
    assert np.array_equal(part.labels, reference.target)


def test_the_cut_of_the_digits_is_golden() -> None:
    """Other indices than these would make recorded runs wrong: never change them."""
    splits = load_task("digits", seed=0).record["splits"]
    assert {name: split["sha256"][:16] for name, split in splits.items()} == {
        "train": "3f17256736bcd6bd",
        "validation": "a7c042e8892fc9bb",
        "test": "72ca886df5ff75c0",
    }


def test_splits_are_disjoint_and_cover_everything() -> None:
    """Every image is unique, so pixels identify it."""
    task = Task.from_arrays(X, Y, seed=3)
    seen: list[bytes] = []
    for split in (task.train, task.validation, task.test):
        images = torch.cat([x for x, _ in split.batches(16)])
        assert len(images) == len(split) == len(split.labels)
        seen += [image.numpy().tobytes() for image in images]
    assert len(set(seen)) == len(seen) == 60


def test_a_given_test_part_is_never_mixed_in() -> None:
    marked = np.full((9, 8, 10, 3), 77, dtype=np.uint8)
    task = Task.from_arrays(X, Y, marked, np.arange(9) % 3)
    images = torch.cat([x for x, _ in task.test.batches(4)])
    assert len(images) == 9
    assert (images == images[0]).all()
    for split in (task.train, task.validation):
        assert not any((x.flatten(1) == images[0].flatten()).all(1).any() for x, _ in split.batches(64))


def test_the_test_part_does_not_touch_what_training_sees() -> None:
    one, other = (Task.from_arrays(X, Y, test, np.arange(9) % 3) for test in (X[:9], 255 - X[:9]))
    assert one.preprocessing == other.preprocessing
    assert one.record["augmentation"] == other.record["augmentation"]
    for step in range(3):
        for a, b in zip(one.train.batch(step, 8, augment=True), other.train.batch(step, 8, augment=True), strict=True):
            assert torch.equal(a, b)


def test_all_three_parts_may_be_given() -> None:
    task = Task.from_arrays(X, Y, X[:6], Y[:6], x_validation=X[:12], y_validation=Y[:12])
    assert task.record["sizes"] == {"train": 60, "validation": 12, "test": 6}


def test_training_batches_are_normalised() -> None:
    task = Task.from_arrays(X, Y)
    images = torch.cat([x for x, _ in task.train.batches(64)])
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_imbalance_gets_a_warning_and_balanced_accuracy() -> None:
    task = Task.from_arrays(X, np.repeat([0, 1], [54, 6]))
    assert task.metric is balanced_accuracy
    assert task.metric_name == "balanced accuracy"
    assert len(task.warnings) == 1
    assert "more than 5 times fewer; balanced accuracy is reported" in task.warnings[0]


def test_metrics() -> None:
    logits = torch.eye(3)[torch.tensor([0, 0, 0, 0, 1, 0])]
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    assert accuracy(logits, labels) == 5 / 6
    assert balanced_accuracy(logits, labels) == 0.75


def test_the_record_is_json_without_more_paths_than_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "set.npz", x_train=X, y_train=Y)
    monkeypatch.chdir(tmp_path)
    task = load_task("set.npz", seed=5)
    text = json.dumps(task.record)
    assert json.loads(text) == task.record
    assert str(tmp_path) not in text
    assert task.record["source"] == "set.npz"
    assert task.record["seed"] == 5
    assert set(task.record["splits"]["test"]) == {"part", "size", "sha256", "labels_sha256"}
    assert task.record["train_class_counts"] == [12, 12, 12]


def test_preprocessing_goes_through_json() -> None:
    before = load_task("digits").preprocessing
    values = json.loads(json.dumps(before.to_dict()))
    assert values["mode"] == "L"
    assert Preprocessing.from_dict(values) == before


def test_a_missing_image_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.png: no such file"):
        pixels_of(load_task("digits")).image(tmp_path / "x.png")


def test_an_input_of_two_channels_is_no_image_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="inputs have 2 channels, so an image file cannot be one"):
        Preprocessing(2, 8, 8, (0.0, 0.0), (1.0, 1.0)).image(tmp_path / "x.png")


def test_a_task_can_be_pickled() -> None:
    task = load_task("digits", flip=True)
    copy = pickle.loads(pickle.dumps(task))
    assert torch.equal(copy.train.batch(3, 9, augment=True)[0], task.train.batch(3, 9, augment=True)[0])


def test_large_arrays_are_scaled_down() -> None:
    x = np.random.default_rng(0).integers(0, 256, (8, 240, 480), dtype=np.uint8)
    for images in (x, x / 255 * 0.99):
        task = Task.from_arrays(images, np.arange(8) % 2)
        assert task.example.shape == (1, 1, 112, 224)
        assert "resized to 112x224" in task.warnings[0]


def test_arrays_are_copied() -> None:
    x = X.copy()
    task = Task.from_arrays(x, Y, x[:6], Y[:6], x_validation=x[:6], y_validation=Y[:6])
    before = task.train.batch(0, 8)[0]
    x[:] = 0
    assert torch.equal(task.train.batch(0, 8)[0], before)


@pytest.mark.parametrize(
    "source, message",
    [
        ("", r"no data is named; data is digits, FILE.npz"),
        ("digit", r"digit: no such file or folder; data is digits, FILE\.npz, a folder"),
        ("owner/name", r"for a Hugging Face set write hf:owner/name; data is"),
        ("missing.npz", r"missing\.npz: no such file"),
        ("table.xls", r"table\.xls: unknown data format '\.xls'; data is digits"),
        ("table.csv", r"table\.csv: text, not images; load it with sartor.data.text.text_task, or name a --model"),
        ("empty.npz", r"empty\.npz: the file is empty; write or download it again"),
    ],
)
def test_wrong_sources_get_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").touch()
    (tmp_path / "table.xls").touch()
    (tmp_path / "empty.npz").touch()
    with pytest.raises(DataError, match=message) as caught:
        load_task(source)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_get_one_line() -> None:
    with pytest.raises(DataError, match=r"validation = 0\.9, test = 0\.15: not shares of the training data"):
        load_task("digits", validation=0.9)
    with pytest.raises(DataError, match="image size 4x4 is out of range; choose sides from 8 to 224"):
        load_task("digits", image_size=4)
    with pytest.raises(DataError, match="x_test and y_test go together; give both or neither"):
        Task.from_arrays(X, Y, X)
    with pytest.raises(DataError, match="x_train has 60 samples but y_train has 59; give one label per image"):
        Task.from_arrays(X, Y[:-1])


def test_an_unreadable_folder_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); check the path"):
        load_task(tmp_path)


def test_a_class_with_one_sample_gets_one_line() -> None:
    labels = Y.copy()
    labels[labels == 2] = 1
    labels[7] = 2
    with pytest.raises(DataError, match="class '2' has 1 training sample, but at least 3 are needed"):
        Task.from_arrays(X, labels)
