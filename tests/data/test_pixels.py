"""Image arrays of every layout and unit, and what is wrong with the others."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from sartor.data.pixels import mean_and_std, to_pixels
from sartor.data.source import DataError

RAMP = np.arange(2 * 8 * 9, dtype=np.uint8).reshape(2, 8, 9)
FULL = np.concatenate([RAMP[:1], RAMP[:1] * 0 + 255])


def pixels(**parts: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return to_pixels({part: (images, f"x_{part}") for part, images in parts.items()})


def test_layouts() -> None:
    colour = np.stack([RAMP, RAMP + 1, RAMP + 2], axis=1)
    assert np.array_equal(pixels(train=RAMP)["train"], RAMP[:, None])
    assert np.array_equal(pixels(train=RAMP[..., None])["train"], RAMP[:, None])
    assert np.array_equal(pixels(train=colour)["train"], colour)
    assert np.array_equal(pixels(train=colour.transpose(0, 2, 3, 1))["train"], colour)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16])
def test_whole_values_are_kept_as_bytes(dtype: type) -> None:
    out = pixels(train=FULL.astype(dtype))["train"]
    assert out.dtype == np.uint8
    assert np.array_equal(out[:, 0], FULL)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_unit_range_is_scaled_back_to_the_same_bytes(dtype: type) -> None:
    out = pixels(train=(FULL / 255).astype(dtype), test=(RAMP / 255).astype(dtype))
    assert out["train"].dtype == out["test"].dtype == np.uint8
    assert np.array_equal(out["test"][:, 0], RAMP)


def test_values_between_bytes_stay_floats_in_all_parts() -> None:
    fine = FULL / 255 * 0.999
    out = pixels(train=FULL / 255, test=fine)
    assert out["train"].dtype == out["test"].dtype == np.float32
    np.testing.assert_allclose(out["test"][:, 0], fine * 255, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.float32])
def test_black_and_white(dtype: type) -> None:
    out = pixels(train=(RAMP % 2).astype(dtype))["train"]
    assert np.array_equal(np.unique(out), [0, 255])
    assert out.dtype == np.uint8


NAN, INF = RAMP / 255, RAMP / 255
NAN[1, 2, 3], INF[0, 0, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    "parts, message",
    [
        (
            {"train": np.zeros((5, 784))},
            r"x_train has shape \(5, 784\).*reshaped, here perhaps to \(5, 28, 28\)",
        ),
        ({"train": np.zeros((5, 3072))}, r"perhaps to \(5, 3, 32, 32\)"),
        ({"train": np.zeros((5, 71))}, r"flattened images must be reshaped$"),
        ({"train": np.zeros((5, 8, 8, 4))}, r"shape \(5, 8, 8, 4\).*drop the alpha channel"),
        ({"train": np.zeros((5, 2, 8, 8))}, r"with 1 or 3 channels"),
        ({"train": np.zeros((5, 1, 8, 8, 8))}, r"x_train has shape \(5, 1, 8, 8, 8\)"),
        ({"train": np.zeros(5)}, r"x_train has shape \(5,\)"),
        ({"train": np.zeros((0, 8, 8))}, r"x_train holds no images \(shape \(0, 1, 8, 8\)\)"),
        ({"train": np.zeros((5, 7, 8))}, r"x_train has images of 7x8 pixels; sides are at least 8"),
        ({"train": RAMP.astype(complex)}, r"x_train has dtype complex128; store images as uint8"),
        ({"train": RAMP.astype(object)}, r"x_train has dtype object; store images as uint8"),
        ({"train": RAMP.astype(str)}, r"x_train has dtype <U3"),
        ({"train": NAN}, r"x_train\[1\] holds nan; repair or drop it"),
        ({"train": INF}, r"x_train\[0\] holds inf; repair or drop it"),
        (
            {"train": RAMP.astype(int) * 99},
            r"x_train has values from 0 to 14157; images are in 0..255 or 0..1",
        ),
        ({"train": RAMP / 72 - 1}, r"x_train has values from -1 to .*undo any normalisation"),
        ({"train": RAMP.astype(int) - 1}, r"x_train has values from -1 to 142"),
        ({"train": RAMP, "test": RAMP[:, :, :8]}, r"x_test has images of 8x8 .*, but x_train has 8x9 pixels"),
        ({"train": RAMP / 255, "test": RAMP}, r"x_test has values from 0 to 143, but x_train is in 0..1;"),
        (
            {"train": RAMP * 1.0, "test": RAMP / 255},
            r"x_test .*, but x_train is in 0..255; bring both to one unit",
        ),
    ],
)
def test_bad_images_get_one_line(parts: dict[str, NDArray[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        pixels(**parts)
    assert "\n" not in str(caught.value)


images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.sampled_from([1, 3]), st.just(8), st.just(9)))


@given(images)
def test_mean_and_deviation(values: NDArray[np.uint8]) -> None:
    mean, std = mean_and_std(values)
    scaled = values / 255.0
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), atol=1e-6)
    expected = scaled.std(axis=(0, 2, 3))
    np.testing.assert_allclose(std, np.where(expected > 1e-5, expected, 1.0), atol=1e-6)


def test_mean_and_deviation_of_some_rows() -> None:
    assert mean_and_std(FULL[:, None], np.array([1])) == ((1.0,), (1.0,))
