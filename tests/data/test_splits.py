"""Stratified splits: disjoint, complete, every class everywhere, and the same on every platform."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.data.source import DataError
from sartor.data.splits import check_fractions, default_validation, digest, stratified

fractions = st.floats(0.01, 0.25)


@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    validation=fractions,
    test=st.none() | fractions,
    seed=st.integers(0, 2**40),
)
def test_splits_partition_every_class(counts: list[int], validation: float, test: float | None, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    shares = {"validation": validation} | ({} if test is None else {"test": test})
    cut = stratified(labels, shares, [str(i) for i in range(len(counts))], seed)
    together = np.concatenate(list(cut.values()))
    assert sorted(together.tolist()) == list(range(len(labels)))
    for name, indices in cut.items():
        assert np.array_equal(indices, np.sort(indices))
        sizes = np.bincount(labels[indices], minlength=len(counts))
        assert sizes.min() >= 1
        if name != "train":
            wanted = np.maximum(1, np.floor(shares[name] * np.array(counts) + 0.5))
            assert (sizes <= wanted).all()
            enough = np.array(counts) >= 8
            assert (np.abs(sizes - wanted)[enough] <= 1).all()


def test_another_seed_cuts_otherwise_and_the_same_seed_the_same() -> None:
    labels = np.arange(100) % 4
    first, again, other = (stratified(labels, {"test": 0.2}, "abcd", seed)["test"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_with_too_few_samples_is_named() -> None:
    labels = np.array([0, 0, 0, 1])
    with pytest.raises(DataError, match=r"class 'dog' has 1 training sample, but at least 2 are needed; add"):
        stratified(labels, {}, ["cat", "dog"], 0)
    with pytest.raises(DataError, match=r"'dog' has 1 training sample, .* one for each of train, validation"):
        stratified(labels, {"validation": 0.1}, ["cat", "dog"], 0)
    with pytest.raises(DataError, match=r"class 'dog' has 2 training samples, but at least 3 are needed"):
        stratified(np.array([0, 0, 0, 1, 1]), {"validation": 0.1, "test": 0.1}, ["cat", "dog"], 0)


@pytest.mark.parametrize(
    "shares",
    [{"validation": 0.0}, {"validation": -0.1}, {"validation": 0.4, "test": 0.3}, {"test": math.nan}],
)
def test_shares_out_of_range_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(DataError, match=r"= .*: not shares of the training data; choose"):
        check_fractions(shares)
    check_fractions({"validation": 0.2, "test": 0.3})
    check_fractions({})


def test_the_digest_does_not_depend_on_the_integer_type() -> None:
    assert digest(np.array([1, 2, 3], dtype=">i4").astype(np.int64)) == digest(np.array([1, 2, 3]))
    assert digest(np.array([1])) == "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8"


@given(st.integers(2, 10**7), st.floats(0.0, 0.35))
def test_a_small_set_decides_on_more_of_it(samples: int, test: float) -> None:
    share = default_validation(samples, test)
    assert 0.15 <= share <= 0.25 and share + test <= 0.5 + 1e-9
    assert share in (0.15, 0.25, 0.5 - test) or math.isclose(share * samples, 500)
