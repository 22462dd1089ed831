"""The generator behind splits, orders and augmentation: golden values, since runs are resumed by them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sartor.data.rng import integers, permutation, words

keys = st.lists(st.integers(0, 2**63), min_size=1, max_size=4)


def reference_splitmix64(state: int, count: int) -> list[int]:
    """The generator as its authors print it, in plain integers."""
    out, mask = [], 2**64 - 1
    for _ in range(count):
        state = state + 0x9E3779B97F4A7C15 & mask
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        out.append(z ^ (z >> 31))
    return out


def test_is_splitmix64_seeded_by_the_first_word_of_the_key() -> None:
    (state,) = reference_splitmix64(1234567, 1)
    assert words(5, 1234567).tolist() == reference_splitmix64(state, 5)
    assert reference_splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]  # published values


def test_golden_values() -> None:
    assert permutation(8, 0).tolist() == [5, 7, 2, 0, 3, 1, 6, 4]
    assert permutation(8, 7, 1, 2).tolist() == [5, 6, 0, 2, 4, 3, 1, 7]
    assert words(2, 0, 1).tolist() == [4964578127960768432, 12049418925942065841]


@given(keys, st.integers(1, 300))
def test_permutations_are_permutations(key: list[int], count: int) -> None:
    assert sorted(permutation(count, *key).tolist()) == list(range(count))


@given(keys, st.integers(1, 50))
def test_more_words_begin_with_the_fewer(key: list[int], count: int) -> None:
    assert np.array_equal(words(count, *key), words(100, *key)[:count])


def test_integers_are_uniform() -> None:
    counts = np.bincount(integers(5, 50_000, 3), minlength=5)
    assert counts.sum() == 50_000
    assert abs(counts - 10_000).max() < 400  # four deviations
