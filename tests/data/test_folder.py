"""Folders of images: both layouts, what is ignored, and what is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixels import pixels_of
from sartor.data.source import DataError
from sartor.task import load_task


def draw(file: Path, seed: int = 0, size: tuple[int, int] = (9, 12), mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(file)


def draw_classes(folder: Path, count: int = 6, classes: str = "ab", **options: str | tuple[int, int]) -> None:
    for number, name in enumerate(classes):
        for i in range(count):
            draw(folder / f"class {name}" / f"{i}.png", 100 * number + i, **options)  # type: ignore[arg-type]


def test_classes_alone_are_split(tmp_path: Path) -> None:
    draw_classes(tmp_path, 20)
    task = load_task(str(tmp_path))
    assert task.record["sizes"] == {"train": 24, "validation": 10, "test": 6}
    assert task.classes == ("class a", "class b")
    assert task.example.shape == (1, 3, 9, 12)
    assert task.record["storage"] == "memory, uint8"


@pytest.mark.parametrize("validation", ["val", "validation", "Valid"])
def test_folders_of_splits(tmp_path: Path, validation: str) -> None:
    draw_classes(tmp_path / "train", 6)
    draw_classes(tmp_path / validation, 3)
    draw_classes(tmp_path / "test", 2)
    task = load_task(tmp_path)
    assert task.record["sizes"] == {"train": 12, "validation": 6, "test": 4}
    pixels = np.asarray(Image.open(tmp_path / "test" / "class a" / "0.png")).transpose(2, 0, 1) / 255.0
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (pixels_of(task).mean, pixels_of(task).std))
    np.testing.assert_allclose(next(iter(task.test.batches(1)))[0][0], (pixels - mean) / std, atol=1e-4)


def test_deployed_preprocessing_repeats_the_input_to_the_last_bit(tmp_path: Path) -> None:
    draw_classes(tmp_path / "train", 4)
    draw_classes(tmp_path / "test", 2)
    task = load_task(tmp_path, image_size=(11, 10))
    images, _ = next(iter(task.test.batches(4)))
    again = pixels_of(task).image(tmp_path / "test" / "class b" / "1.png")
    assert again.shape == (1, 3, 11, 10)
    assert np.array_equal(images[3].numpy(), again[0])


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        for i in range(4):
            draw(tmp_path / name / f"{i}.jpg", i)
    assert load_task(tmp_path).classes == ("bus", "train")


def test_hidden_and_other_files_are_counted(tmp_path: Path) -> None:
    draw_classes(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.txt").touch()
    (tmp_path / "class a" / ".hidden.png").touch()
    (tmp_path / "class a" / "notes.csv").touch()
    (tmp_path / "class a" / "folder.png").mkdir()
    draw(tmp_path / "class a" / "LOUD.JPEG", 7)
    task = load_task(tmp_path)
    assert task.record["ignored_files"] == 5
    assert sum(task.record["sizes"].values()) == 13


def test_grey_images_are_read_as_one_channel_and_mixed_ones_as_three(tmp_path: Path) -> None:
    draw_classes(tmp_path, mode="L")
    assert load_task(tmp_path).example.shape == (1, 1, 9, 12)
    draw(tmp_path / "class a" / "colour.png")
    assert load_task(tmp_path).example.shape == (1, 3, 9, 12)


def test_alpha_and_palettes_become_colour(tmp_path: Path) -> None:
    draw_classes(tmp_path)
    plain = Image.open(tmp_path / "class a" / "0.png")
    plain.convert("RGBA").save(tmp_path / "class a" / "alpha.png")
    palette = plain.convert("P")
    palette.save(tmp_path / "class a" / "palette.png", transparency=bytes(range(256)))
    assert load_task(tmp_path).example.shape == (1, 3, 9, 12)


def test_large_images_are_scaled_down_and_said_to_be(tmp_path: Path) -> None:
    draw_classes(tmp_path, 3, size=(150, 300))
    task = load_task(tmp_path)
    assert task.example.shape == (1, 3, 112, 224)
    assert task.warnings == ("images of 150x300 pixels are resized to 112x224, the largest size that is served",)
    assert (pixels_of(task).height, pixels_of(task).width) == (112, 224)
    assert load_task(tmp_path, image_size=32).warnings == ()


def test_unequal_sizes_are_named_and_an_image_size_brings_them_together(tmp_path: Path) -> None:
    draw_classes(tmp_path)
    odd = tmp_path / "class b" / "odd.png"
    draw(odd, size=(10, 12))
    with pytest.raises(DataError, match=r"unequal size .*class a/0\.png is 9x12, .*odd\.png is 10x12; bring"):
        load_task(tmp_path)
    task = load_task(tmp_path, image_size=16)
    assert task.example.shape == (1, 3, 16, 16)
    assert task.record["image_size"] == "various"


@pytest.mark.parametrize("size", [7, 225, (8, 500)])
def test_an_image_size_out_of_range(tmp_path: Path, size: int | tuple[int, int]) -> None:
    draw_classes(tmp_path)
    with pytest.raises(DataError, match=r"image size .* is out of range; choose sides from 8 to 224"):
        load_task(tmp_path, image_size=size)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
@pytest.mark.parametrize("image_size", [None, 8])
def test_unreadable_images_are_named(tmp_path: Path, content: bytes, image_size: int | None) -> None:
    draw_classes(tmp_path)
    (tmp_path / "class b" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png: unreadable image \(.*\); replace or remove it"):
        load_task(tmp_path, image_size=image_size)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_half_written_images_are_named(tmp_path: Path, suffix: str) -> None:
    draw_classes(tmp_path)
    bad = tmp_path / "class b" / f"half.{suffix}"
    draw(bad)
    bad.write_bytes(bad.read_bytes()[:-60])
    with pytest.raises(DataError, match=rf"half\.{suffix}: unreadable image"):
        load_task(tmp_path)


def test_bad_images_are_refused_in_one_line(tmp_path: Path) -> None:
    def complaint(image: Image.Image) -> str:
        draw_classes(tmp_path)
        image.save(tmp_path / "class b" / "odd.png")
        with pytest.raises(DataError) as caught:
            load_task(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "odd.png: pixels of mode I;16 have more than 8 bits" in complaint(Image.new("I;16", (12, 9)))
    assert "odd.png: 9000x9000 pixels are more than" in complaint(Image.new("1", (9000, 9000)))
    assert "odd.png: unreadable image" in complaint(Image.new("1", (10_000, 10_000)))  # Pillow's bomb warning


def test_small_images_are_refused(tmp_path: Path) -> None:
    draw_classes(tmp_path, size=(7, 9))
    with pytest.raises(DataError, match=r"0\.png: images of 7x9 pixels are too small; sides are at least 8"):
        load_task(tmp_path)


def test_folders_that_hold_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders; put the images of each class in"):
        load_task(tmp_path)
    draw(tmp_path / "1.png")
    with pytest.raises(DataError, match="no class folders"):
        load_task(tmp_path)
    draw(tmp_path / "train" / "1.png")
    with pytest.raises(DataError, match="train: no class folders"):
        load_task(tmp_path)


def test_bad_folders_get_one_line(tmp_path: Path) -> None:
    draw_classes(tmp_path / "test")
    with pytest.raises(DataError, match="has test but no train folder; add train/<class>/ with images"):
        load_task(tmp_path)
    draw_classes(tmp_path / "train", classes="a")
    with pytest.raises(DataError, match=r"train: all 6 labels are class a; a classifier needs at least two"):
        load_task(tmp_path)
    draw_classes(tmp_path / "train", classes="ac")
    with pytest.raises(DataError, match=r"test\[6\]: class class b has samples in test but none in train"):
        load_task(tmp_path)
    (tmp_path / "train" / "class b").mkdir()
    with pytest.raises(DataError, match=r"class b: no \.png, \.jpg or \.jpeg images; add some or remove"):
        load_task(tmp_path)
    draw(tmp_path / "train" / "class b" / "1.png")
    (tmp_path / "val").mkdir()
    (tmp_path / "valid").mkdir()
    with pytest.raises(DataError, match="val and valid both hold validation; keep one"):
        load_task(tmp_path)
    (tmp_path / "val").rmdir()
    (tmp_path / "valid").rmdir()
    with pytest.raises(DataError, match="class 'class b' has 1 training sample, but at least 2 are needed"):
        load_task(tmp_path)


def test_constant_images_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        for i in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (8, 8), 7).save(tmp_path / name / f"{i}.png")
    with pytest.raises(DataError, match="all training images have the one pixel value 7"):
        load_task(tmp_path)
