"""The embedded set: 1797 handwritten digits of 8x8 grey pixels.

The test half of "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak, 1998; UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49, CC BY 4.0), the same arrays as scikit-learn's `load_digits`.
"""

from __future__ import annotations

from importlib import resources

import numpy as np

from sartor.data.source import Arrays, Source

__all__ = ["read_digits"]


def read_digits() -> Source:
    """Return the digits as one part; their 17 ink levels 0..16 become 8-bit levels 0..255."""
    with resources.files("sartor.data").joinpath("digits.npz").open("rb") as stream:
        with np.load(stream, allow_pickle=False) as arrays:
            ink, labels = arrays["images"], arrays["labels"]
    pixels = ((ink.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)
    part = Arrays(pixels, labels.astype(np.int64), "digits: images", "digits: labels")
    return Source(part, record={"kind": "digits"})
