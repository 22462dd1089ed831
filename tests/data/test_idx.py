"""IDX files: plain and compressed, every naming, and a damaged one is refused in one line."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from sartor.data.idx import holds_idx, read_idx
from sartor.data.source import Arrays, DataError
from sartor.task import load_task

X = np.random.default_rng(0).integers(0, 256, (40, 8, 9), dtype=np.uint8)
Y = (np.arange(40) % 4).astype(np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(file: Path, content: bytes) -> None:
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def write_set(folder: Path, prefix: str = "", suffix: str = "", test: str = "t10k") -> None:
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 40), (test, 12)):
        write(folder / f"{prefix}{split}-images-idx3-ubyte{suffix}", idx(X[:count]))
        write(folder / f"{prefix}{split}-labels-idx1-ubyte{suffix}", idx(Y[:count]))


def images(path: Path) -> NDArray[np.uint8]:
    part = read_idx(path, memory_mb=10).train
    assert isinstance(part, Arrays)
    return part.images


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_folders(tmp_path: Path, suffix: str, test: str) -> None:
    write_set(tmp_path, suffix=suffix, test=test)
    task = load_task(tmp_path)
    assert task.record["sizes"] == {"train": 28, "validation": 12, "test": 12}
    assert task.record["kind"] == "idx"
    assert task.classes == ("0", "1", "2", "3")


def test_training_files_alone_are_split(tmp_path: Path) -> None:
    write(tmp_path / "train-images.idx3-ubyte", idx(X))
    write(tmp_path / "train-labels.idx1-ubyte", idx(Y))
    assert load_task(tmp_path).record["sizes"] == {"train": 20, "validation": 12, "test": 8}


def test_emnist_is_turned_back_and_one_of_several_sets_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, "emnist-letters-", ".gz", "test")
    assert np.array_equal(images(tmp_path), X.transpose(0, 2, 1))
    assert load_task(tmp_path).record["transposed"] is True
    write_set(tmp_path, "emnist-digits-", ".gz", "test")
    with pytest.raises(DataError, match=r"several data sets in one folder \(emnist-digits, emnist-letters\)"):
        load_task(tmp_path)
    task = load_task(tmp_path / "emnist-letters")
    assert task.record["sizes"]["test"] == 12
    assert task.name == "emnist-letters"
    assert not holds_idx(tmp_path / "emnist-balanced")


def test_the_plain_file_goes_before_its_compressed_copy(tmp_path: Path) -> None:
    write_set(tmp_path)
    write(tmp_path / "train-images-idx3-ubyte.gz", b"rubbish")
    assert np.array_equal(images(tmp_path), X)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    values=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(8, 12), st.integers(8, 12))),
    suffix=st.sampled_from(["", ".gz"]),
    colour=st.booleans(),
)
def test_round_trip(tmp_path: Path, values: NDArray[np.uint8], suffix: str, colour: bool) -> None:
    for file in tmp_path.iterdir():
        file.unlink()
    array = np.stack([values] * 3, axis=1) if colour else values
    write(tmp_path / f"train-images-idx{array.ndim}-ubyte{suffix}", idx(array))
    write(tmp_path / f"train-labels-idx1-ubyte{suffix}", idx(Y[: len(values)]))
    assert np.array_equal(images(tmp_path), array)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("what", ["images-idx3", "labels-idx1"])
def test_every_truncation_is_refused(tmp_path: Path, suffix: str, what: str) -> None:
    write_set(tmp_path, suffix=suffix)
    file = tmp_path / f"train-{what}-ubyte{suffix}"
    content = file.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 60)):
        file.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"train-{what}-ubyte.*(half-written|holds|damaged)") as caught:
            load_task(tmp_path)
        assert "\n" not in str(caught.value)


def test_bad_files_get_one_line(tmp_path: Path) -> None:
    def complaint(content: bytes, name: str = "train-images-idx3-ubyte", memory_mb: float = 10) -> str:
        write_set(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_idx(tmp_path, memory_mb=memory_mb)
        return str(caught.value)

    assert "starts with 0x89504e47, not 0x00000803 or 0x00000804" in complaint(b"\x89PNG----")
    assert "starts with 0x00000801, not" in complaint(idx(Y))
    assert "starts with 0x00000d03" in complaint(b"\0\0\x0d\x03" + idx(X)[4:])
    assert "not 0x00000801; it is not" in complaint(idx(X), "train-labels-idx1-ubyte")
    assert "declares shape (40, 8, 9), 2880 bytes, but holds more" in complaint(idx(X) + b"\0")
    assert "2880 bytes, but holds 2879 bytes" in complaint(idx(X)[:-1])
    assert "has 39 samples but" in complaint(idx(X[:39]))
    assert "MB, more than memory_mb = 10; raise the bound" in complaint(struct.pack(">4I", 0x803, 2**31, 9, 9))


def test_not_gzip(tmp_path: Path) -> None:
    write_set(tmp_path, suffix=".gz")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"t10k-labels.*damaged or half-written gzip \(Not a gzipped file"):
        load_task(tmp_path)


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    (tmp_path / "train-labels-idx1-ubyte").mkdir()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: cannot be read \(Is a directory\)"):
        load_task(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-images-idx3-ubyte has no labels file beside it; add it"):
        load_task(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte among its IDX files \(t10k-images"):
        load_task(tmp_path)
