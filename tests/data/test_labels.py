"""Labels as users write them, and what is wrong with the others."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sartor.data.labels import encode_labels, imbalance_warning
from sartor.data.source import DataError


def encode(names: list[str] | None = None, **parts: Any) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    return encode_labels({part: (np.asarray(values), f"y_{part}") for part, values in parts.items()}, names)


@pytest.mark.parametrize(
    "train, classes",
    [
        ([0, 1, 2, 1], ("0", "1", "2")),
        (np.array([0, 1, 2, 1], dtype=np.uint8), ("0", "1", "2")),
        ([0.0, 1.0, 2.0, 1.0], ("0", "1", "2")),
        ([[0], [1], [2], [1]], ("0", "1", "2")),
        ([1, 2, 3, 2], ("1", "2", "3")),
        (["ant", "bee", "cat", "bee"], ("ant", "bee", "cat")),
        (np.array([b"ant", b"bee", b"cat", b"bee"]), ("ant", "bee", "cat")),
    ],
)
def test_labels_become_indices(train: Any, classes: tuple[str, ...]) -> None:
    encoded, names = encode(train=train)
    assert encoded["train"].tolist() == [0, 1, 2, 1]
    assert encoded["train"].dtype == np.int64
    assert names == classes


def test_booleans_are_two_classes() -> None:
    assert encode(train=[True, False, True])[1] == ("0", "1")


def test_declared_names_number_the_classes_and_a_part_may_lack_some() -> None:
    encoded, names = encode(["a", "b", "c"], train=[0, 2, 1], test=[2, 2])
    assert names == ("a", "b", "c")
    assert encoded["test"].tolist() == [2, 2]


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"train": [0, -1, 1]}, r"y_train\[1\]: label -1 is negative; classes are numbered from 0"),
        ({"train": [0, 0.5, 1]}, r"y_train\[1\]: label 0.5 is not a whole number"),
        ({"train": [0, 1, np.nan]}, r"y_train\[2\]: label nan is not a whole number"),
        (
            {"train": [0, 1, 999, 1]},
            r"y_train\[2\]: label 999 is out of range, as no sample has label 2; number",
        ),
        ({"train": [5, 6, 5]}, r"y_train\[0\]: label 5 is out of range, as no sample has label 0"),
        ({"train": [0, 1, 2**40]}, r"y_train\[2\]: label 1099511627776 is out of range"),
        ({"train": [0, 1], "test": [0, 7]}, r"y_test\[1\]: label 7 is out of range: y_train has 0..1"),
        ({"train": [0, 2], "test": [0, 1]}, r"y_test\[1\]: class 1 has samples in test but none in train"),
        (
            {"train": ["a", "b"], "test": ["a", "c"]},
            r"y_test\[1\]: class c has samples in test but none in train",
        ),
        ({"train": [0, 1], "test": ["0", "1"]}, r"labels of different kinds: y_train int64, y_test <U1"),
        ({"train": [3, 3, 3]}, r"y_train: all 3 labels are 3; a classifier needs at least two classes"),
        ({"train": []}, r"y_train holds no samples"),
        ({"train": [[1, 0], [0, 1]]}, r"y_train has shape \(2, 2\).* argmax\(axis=1\) of one-hot"),
        ({"train": np.zeros((2, 2, 2))}, r"y_train has shape \(2, 2, 2\), but labels have shape \(N,\)$"),
        ({"train": [1j, 0]}, r"y_train has dtype complex128; labels are integers or strings"),
        ({"train": np.array([{}, {}])}, r"y_train has dtype object"),
    ],
)
def test_bad_labels_get_one_line(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encode(**parts)
    assert "\n" not in str(caught.value)


def test_labels_beyond_the_declared_names_are_out_of_range() -> None:
    with pytest.raises(DataError, match=r"y_train\[2\]: label 2 is out of range for 2 classes \(0..1\)"):
        encode(["a", "b"], train=[0, 1, 2])


def test_imbalance_is_more_than_five_times() -> None:
    assert imbalance_warning(np.array([50, 10]), "ab") is None
    warning = imbalance_warning(np.array([10, 51]), "ab")
    assert warning is not None
    assert "class 'b' has 51 training samples and 'a' only 10" in warning
    assert "balanced accuracy" in warning
