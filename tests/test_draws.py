"""Draws: the published generator, and numbers that belong to a sample, an epoch and a purpose, and to nothing else."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rkd.draws import Draws, hash64, splitmix64, unit_hash

U64 = st.integers(0, 2**64 - 1)


def mix(x: int) -> int:
    """splitmix64 in plain integers (Steele, Lea & Flood 2014; Vigna's splitmix64.c)."""
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_first_outputs_of_seed_0_are_the_published_ones():
    states = np.arange(5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(v) for v in splitmix64(states).tolist()] == [
        "0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f", "0xf88bb8a8724c81ec", "0x1b39896a51a8749b",
    ]  # fmt: skip


@given(st.lists(U64, min_size=1, max_size=20))
def test_splitmix64_equals_plain_integers(values):
    assert splitmix64(np.array(values, dtype=np.uint64)).tolist() == [mix(v) for v in values]


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.lists(U64, min_size=1, max_size=5), st.text(max_size=20))
def test_uniform_equals_plain_integers(seed, epoch, ids, purpose):
    digest = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "big")
    keys = [mix(i ^ mix(mix(seed) ^ epoch)) for i in ids]
    assert Draws(seed, epoch, ids).uniform(purpose).tolist() == [(mix(k ^ digest) >> 11) / 2**53 for k in keys]


def test_hashes_are_the_same_everywhere():
    assert hash64("") == 0xE4A6A0577479B2B4  # BLAKE2b with an 8-byte digest
    assert unit_hash("") == pytest.approx(0xE4A6A0577479B2B4 / 2**64, abs=1e-15)


@given(st.lists(U64, min_size=1, max_size=12, unique=True), st.randoms(use_true_random=False))
def test_a_sample_draws_the_same_in_any_batch(ids, random):
    together = dict(zip(ids, Draws(7, 3, ids).uniform("snr").tolist(), strict=True))
    shuffled = random.sample(ids, len(ids))
    half = shuffled[: len(ids) // 2 + 1]
    assert Draws(7, 3, half).uniform("snr").tolist() == [together[i] for i in half]
    rows = np.array([ids.index(i) for i in half])
    assert Draws(7, 3, ids).rows(rows).uniform("snr").tolist() == [together[i] for i in half]


def test_purposes_do_not_disturb_each_other():
    ids = np.arange(50, dtype=np.uint64)
    draws = Draws(0, 0, ids)
    before = draws.uniform("snr")
    draws.uniform("a new purpose"), draws.choice("another", [1, 2])
    assert np.array_equal(draws.uniform("snr"), before)


@pytest.mark.parametrize(
    "other", [Draws(1, 0, range(20000)), Draws(0, 1, range(20000)), Draws(0, 0, range(20000, 40000))]
)
def test_uniform_and_independent_of_other_seeds_epochs_and_samples(other):
    draws = Draws(0, 0, range(20000))
    u, v, w = draws.uniform("a"), draws.uniform("b"), other.uniform("a")
    for x in (u, v, w):
        assert x.min() >= 0 and x.max() < 1
        counts = np.histogram(x, 64, (0, 1))[0]
        chi2 = ((counts - 312.5) ** 2 / 312.5).sum()  # 63 degrees of freedom: mean 63, standard deviation 11.2
        assert 25 < chi2 < 120
    for x in (v, w, np.roll(u, 1)):
        assert abs(np.corrcoef(u, x)[0, 1]) < 4 / np.sqrt(20000)


def test_below_fills_its_range():
    drawn = Draws(0, 0, range(5000)).below("n", 7)
    assert drawn.dtype == np.int64 and set(drawn.tolist()) == set(range(7))
    high = np.array([1, 2, 50] * 100)
    assert (Draws(0, 0, range(300)).below("n", high) < high).all()


def test_choice_follows_its_weights():
    drawn = Draws(0, 0, range(20000)).choice("type", [0, 1, 3, 0])
    assert set(drawn.tolist()) == {1, 2}
    assert (drawn == 2).mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.1875 / 20000))


def test_many_numbers_of_a_purpose():
    draws = Draws(0, 0, range(300))
    many = draws.uniforms("packets", 50)
    assert many.shape == (300, 50) and np.array_equal(many[:, :20], draws.uniforms("packets", 20))
    assert many.min() >= 0 and many.max() < 1 and many.mean() == pytest.approx(0.5, abs=0.01)
    assert np.abs(np.corrcoef(many.T) - np.eye(50)).max() < 0.3
    assert np.array_equal(draws.rows(np.array([7, 3])).uniforms("packets", 5), many[[7, 3], :5])


def test_draws_within_a_name_are_others():
    draws = Draws(0, 0, range(300))
    inner = draws.within("a")
    found = [draws.uniform("x"), inner.uniform("x"), draws.within("b").uniform("x")]
    assert np.abs(np.corrcoef(found) - np.eye(3)).max() < 0.2
    assert np.array_equal(inner.rows(np.array([4])).uniform("x"), found[1][4:5])
