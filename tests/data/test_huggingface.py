"""The Hugging Face reader on local sets, without a network."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixels import pixels_of
from sartor.data.source import DataError
from sartor.task import load_task

NAMES = ("ant", "bee")


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, offline, with its cache in a temporary folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return module


def picture(seed: int, size: tuple[int, int] = (10, 9)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture
def table(datasets: Any) -> Callable[..., Any]:
    def make(count: int, first: int = 0, **columns: Any) -> Any:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
        rows = {
            "image": [picture(first + i) for i in range(count)],
            "label": [i % 2 for i in range(count)],
        } | columns
        return datasets.Dataset.from_dict(rows, features=features)

    return make


def test_a_saved_set(tmp_path: Path, datasets: Any, table: Callable[..., Any]) -> None:
    parts = {"train": table(12), "dev": table(4, 50), "test": table(6, 80), "extra": table(2)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    task = load_task(f"hf:{tmp_path / 'set'}")
    assert task.classes == NAMES
    assert task.name == "set"
    assert task.record["sizes"] == {"train": 12, "validation": 4, "test": 6}
    assert task.record["columns"] == {"image": "image", "label": "label"}
    assert task.record["ignored_splits"] == ["extra"]
    picture(80).save(tmp_path / "80.png")
    images, _ = next(iter(task.test.batches(1)))
    assert np.array_equal(images.numpy(), pixels_of(task).image(tmp_path / "80.png"))


def test_a_single_table_is_split_and_streams(tmp_path: Path, table: Callable[..., Any]) -> None:
    table(20).save_to_disk(tmp_path / "set")
    task = load_task(f"hf:{tmp_path / 'set'}")
    assert task.record["sizes"] == {"train": 10, "validation": 6, "test": 4}
    streamed = load_task(f"hf:{tmp_path / 'set'}", memory_mb=0.001, workers=2)
    assert streamed.record["storage"].startswith("streamed")
    for step in (3, 0):
        served, expected = (t.train.batch(step, 5, augment=True)[0] for t in (streamed, task))
        assert torch.equal(served, expected)


def test_an_image_folder(tmp_path: Path, datasets: Any) -> None:
    for split, count in (("train", 6), ("test", 2)):
        for name in NAMES:
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(count):
                picture(i).save(tmp_path / "pictures" / split / name / f"{i}.png")
    task = load_task(f"hf:{tmp_path / 'pictures'}")
    assert task.classes == NAMES
    assert task.record["sizes"] == {"train": 8, "validation": 4, "test": 4}


def test_plain_labels(tmp_path: Path, datasets: Any) -> None:
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("string")})
    rows = {"photo": [picture(i) for i in range(8)], "label": ["wasp", "fly"] * 4}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    task = load_task(f"hf:{tmp_path / 'set'}")
    assert task.classes == ("fly", "wasp")
    assert task.record["columns"]["image"] == "photo"


def test_bad_sets_get_one_line(tmp_path: Path, datasets: Any, table: Callable[..., Any]) -> None:
    def complaint(data: Any) -> str:
        path = tmp_path / f"set {len(list(tmp_path.iterdir()))}"
        data.save_to_disk(path)
        with pytest.raises(DataError) as caught:
            load_task(f"hf:{path}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    rows = table(8)
    assert "no train split among test" in complaint(datasets.DatasetDict({"test": rows}))
    assert "no column of type Image among label" in complaint(rows.remove_columns("image"))
    assert "no column of type ClassLabel, and none called label, among image" in complaint(rows.remove_columns("label"))
    assert "/test: no column label, which train has" in complaint(
        datasets.DatasetDict({"train": rows, "test": rows.remove_columns("label")})
    )
    assert "/train[5]: the row has no image; drop it" in complaint(
        table(8, image=[picture(i) if i != 5 else None for i in range(8)])
    )
    assert "/train: label[3]: label -1 is negative" in complaint(table(8, label=[0, 1, 0, -1, 0, 1, 0, 1]))
    odd = [picture(i, (10, 9) if i != 6 else (11, 9)) for i in range(8)]
    assert "train[0] is 10x9," in complaint(table(8, image=odd))
    assert "train[6] is 11x9; bring them to one size" in complaint(table(8, image=odd))


def test_an_unknown_id_is_one_line(datasets: Any) -> None:
    with pytest.raises(DataError, match=r"hf:nobody/nothing: cannot be loaded \(.*\); check the id") as caught:
        load_task("hf:nobody/nothing")
    assert "\n" not in str(caught.value)


def test_the_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"hf:some/set needs the datasets library: pip install 'sartor\[hf\]'"):
        load_task("hf:some/set")
