"""`.npz` archives: every layout reads back, and a damaged one is refused in one line."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pixels import pixels_of
from sartor.data.npz import read_npz
from sartor.data.source import Arrays, DataError
from sartor.task import load_task

X = np.random.default_rng(0).integers(0, 256, (40, 8, 9), dtype=np.uint8)
Y = np.arange(40) % 4


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez_compressed(folder / "set.npz", **arrays)
    return folder / "set.npz"


def whole() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x_train=X, y_train=Y, x_test=X[:8], y_test=Y[:8])
    return stream.getvalue()


@pytest.mark.parametrize("x, y", [("x_{}", "y_{}"), ("{}_images", "{}_labels")], ids=["keras style", "medmnist style"])
def test_all_three_parts(tmp_path: Path, x: str, y: str) -> None:
    arrays: dict[str, Any] = {}
    for number, split in enumerate(("train", "val", "test")):
        arrays |= {x.format(split): X + number, y.format(split): Y}
    source = read_npz(saved(tmp_path, **arrays), memory_mb=10)
    for number, part in enumerate(source.parts().values()):
        assert isinstance(part, Arrays)
        assert np.array_equal(part.images, X + number)
        assert np.array_equal(part.labels, Y)
    assert list(source.parts()) == ["train", "validation", "test"]


def test_missing_parts_are_cut_from_train(tmp_path: Path) -> None:
    task = load_task(str(saved(tmp_path, x_train=X, y_train=Y)))
    assert task.record["sizes"] == {"train": 20, "validation": 12, "test": 8}
    task = load_task(saved(tmp_path, x_train=X, y_train=Y, x_test=X[:9], y_test=Y[:9]))
    assert task.record["sizes"] == {"train": 28, "validation": 12, "test": 9}
    assert task.record["splits"]["test"]["part"] == "test"
    assert task.name == "set"


def test_string_labels(tmp_path: Path) -> None:
    task = load_task(saved(tmp_path, x_train=X, y_train=np.array(["ant", "bee", "cat", "dog"])[Y]))
    assert task.classes == ("ant", "bee", "cat", "dog")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    data=st.data(),
    shape=st.sampled_from([(12, 8, 11), (12, 8, 11, 1), (12, 3, 8, 11), (12, 8, 11, 3)]),
    dtype=st.sampled_from([np.uint8, np.int16, np.float32]),
)
def test_round_trip_to_normalised_batches(
    tmp_path: Path, data: st.DataObject, shape: tuple[int, ...], dtype: type
) -> None:
    values: NDArray[np.uint8] = data.draw(hnp.arrays(np.uint8, shape))
    values.flat[:2] = (0, 255)  # fixes the unit
    labels = np.arange(12) % 2
    path = saved(
        tmp_path, x_train=values.astype(dtype), y_train=labels, x_val=values.astype(dtype), y_val=labels,
        x_test=values.astype(dtype), y_test=labels,
    )  # fmt: skip
    task = load_task(path)
    images, read = next(iter(task.test.batches(12)))
    first = values[:, None] if values.ndim == 3 else values
    first = first.transpose(0, 3, 1, 2) if first.shape[1] == 8 else first
    mean, std = (np.reshape(v, (1, -1, 1, 1)) for v in (pixels_of(task).mean, pixels_of(task).std))
    np.testing.assert_allclose(images.numpy(), (first / 255.0 - mean) / std, atol=1e-4)
    assert read.tolist() == labels.tolist()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content, path = whole(), tmp_path / "half.npz"
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"half\.npz: .*(empty|half-written).* again") as caught:
            read_npz(path, memory_mb=10)
        assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(place=st.integers(0, len(whole()) - 1), flip=st.integers(1, 255))
def test_damage_is_refused_or_harmless(tmp_path: Path, place: int, flip: int) -> None:
    content, path = bytearray(whole()), tmp_path / "damaged.npz"
    content[place] ^= flip
    path.write_bytes(content)
    try:
        source = read_npz(path, memory_mb=10)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(source.train, Arrays)
        assert np.array_equal(source.train.images, X)


def test_bad_archives_get_one_line(tmp_path: Path) -> None:
    def complaint(**arrays: Any) -> str:
        with pytest.raises(DataError) as caught:
            read_npz(saved(tmp_path, **arrays), memory_mb=1)
        return str(caught.value)

    assert "no x_train and y_train among its keys (a, b); rename them" in complaint(a=X, b=Y)
    assert "has x_train but no y_train (keys: x_train, b)" in complaint(x_train=X, b=Y)
    assert "has y_test but no x_test" in complaint(x_train=X, y_train=Y, y_test=Y)
    assert "set.npz: x_train has 40 samples but" in complaint(x_train=X, y_train=Y[:-1])
    assert "y_train has 39; give one label per image" in complaint(x_train=X, y_train=Y[:-1])
    assert "x_train has dtype object, which is never unpickled" in complaint(x_train=X.astype(object), y_train=Y)
    assert "x_train is not an array of numbers or strings" in complaint(x_train=np.zeros(3, "i4,f4"), y_train=Y)
    assert "y_train is a single value" in complaint(x_train=X, y_train=np.array(3))
    large = complaint(x_train=np.zeros((2000, 32, 32), np.uint8), y_train=Y)
    assert "unpacks to 2 MB, more than memory_mb = 1; raise the bound" in large


def test_an_archive_without_arrays(tmp_path: Path) -> None:
    path = tmp_path / "none.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("note.txt", "nothing")
    with pytest.raises(DataError, match="holds no arrays"):
        read_npz(path, memory_mb=1)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.npz: no such file"):
        load_task(tmp_path / "nothing.npz")
    path = tmp_path / "text.npz"
    path.write_text("x_train")
    with pytest.raises(DataError, match=r"not a whole \.npz archive"):
        load_task(path)
