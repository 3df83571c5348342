import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.metrics import (
    Errors,
    align_words,
    bootstrap_interval,
    character_errors,
    error_rate,
    paired_bootstrap_difference,
    pesq_available,
    pesq_wb,
    quality,
    si_sdr_db,
    stoi,
    word_errors,
)
from rkd.processes import worker_pool

words = st.lists(st.sampled_from(["one", "two", "three"]), max_size=8)
counts = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), min_size=2, max_size=30)


def edit_distance(a, b):
    """Wagner & Fischer (1974), with one row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def speech_like(seconds, seed=0):
    """Noise in syllables, as loud as speech; 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(16_000 * seconds)) / 16_000
    return 0.1 * rng.normal(size=len(t)) * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * t))


@given(words, words)
def test_word_errors_are_the_edit_distance(reference, hypothesis):
    errors = word_errors(" ".join(reference), " ".join(hypothesis))
    assert errors.total == edit_distance(reference, hypothesis)
    assert errors.n_reference == len(reference)
    assert errors.insertions - errors.deletions == len(hypothesis) - len(reference)


@given(words, words)
def test_character_errors_are_the_edit_distance(reference, hypothesis):
    reference, hypothesis = " ".join(reference), " ".join(hypothesis)
    errors = character_errors(reference, hypothesis)
    assert (errors.total, errors.n_reference) == (edit_distance(reference, hypothesis), len(reference))


def test_an_empty_reference_makes_every_word_an_insertion():
    assert word_errors("", "one two") == Errors(0, 0, 2, 0)
    assert word_errors("one two", "") == Errors(0, 2, 0, 2)
    assert character_errors("", "ab") == Errors(0, 0, 2, 0)


def test_error_rate_is_a_ratio_of_sums():
    assert error_rate([Errors(1, 0, 0, 1), Errors(0, 0, 0, 9)]) == 0.1  # not the mean of 100% and 0%
    assert error_rate([Errors(0, 0, 3, 2)]) == 1.5
    assert error_rate([]) is None and error_rate([Errors(0, 0, 2, 0)]) is None


@given(words, words)
def test_an_alignment_spells_both_texts(reference, hypothesis):
    chunks = align_words(" ".join(reference), " ".join(hypothesis))
    assert [w for c in chunks for w in c.reference] == reference
    assert [w for c in chunks for w in c.hypothesis] == hypothesis
    assert all((c.reference == c.hypothesis) == (c.kind == "equal") for c in chunks)


@settings(max_examples=50)
@given(counts)
def test_an_interval_lies_between_the_best_and_the_worst_utterance(rows):
    errors_N, counts_N = np.array(rows).T
    lo, hi = bootstrap_interval(errors_N, counts_N, n_resamples=200)
    rates_N = errors_N / counts_N
    assert rates_N.min() - 1e-12 <= lo <= hi <= rates_N.max() + 1e-12


@settings(max_examples=50)
@given(counts, st.integers(2, 50))
def test_an_interval_does_not_change_with_the_unit_of_errors(rows, k):
    errors_N, counts_N = np.array(rows).T
    once = bootstrap_interval(errors_N, counts_N, n_resamples=100)
    assert bootstrap_interval(k * errors_N, counts_N, n_resamples=100) == pytest.approx([k * end for end in once])


def test_an_interval_has_the_width_of_the_normal_approximation():
    # Binomial errors in equal utterances: the standard error of the rate is sqrt(p (1 - p) / words).
    rng = np.random.default_rng(0)
    n, length, p = 2000, 10, 0.2
    errors_N = rng.binomial(length, p, size=n)
    lo, hi = bootstrap_interval(errors_N, np.full(n, length))
    rate, half = errors_N.sum() / (n * length), 1.96 * np.sqrt(p * (1 - p) / (n * length))
    assert lo == pytest.approx(rate - half, abs=0.15 * half) and hi == pytest.approx(rate + half, abs=0.15 * half)


def test_an_interval_covers_the_true_rate_about_nineteen_times_in_twenty():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        counts_N = rng.integers(3, 12, size=80)
        lo, hi = bootstrap_interval(rng.binomial(counts_N, 0.3), counts_N, n_resamples=300, seed=trial)
        covered += lo <= 0.3 <= hi
    assert 180 <= covered <= 199


def test_an_interval_is_the_same_for_the_same_seed_and_in_blocks(monkeypatch):
    rng = np.random.default_rng(2)
    counts_N = rng.integers(1, 9, size=64)
    errors_N = rng.binomial(counts_N, 0.4)
    whole = bootstrap_interval(errors_N, counts_N)
    assert bootstrap_interval(errors_N, counts_N) == whole != bootstrap_interval(errors_N, counts_N, seed=1)
    monkeypatch.setattr("rkd.metrics._BLOCK", 1000)
    assert bootstrap_interval(errors_N, counts_N) == whole


def test_no_interval_without_two_utterances_or_any_words():
    assert bootstrap_interval([1], [4]) is None and bootstrap_interval([], []) is None
    assert bootstrap_interval([1, 2], [0, 0]) is None
    assert bootstrap_interval([0, 0], [3, 0]) == (0.0, 0.0)
    assert paired_bootstrap_difference([1], [2], [4]) is None
    with pytest.raises(ValueError, match="different utterances"):
        bootstrap_interval([1, 2], [3])


def test_pairing_takes_out_what_is_hard_for_both_systems():
    rng = np.random.default_rng(3)
    counts_N = np.full(100, 10)
    hard_N = rng.integers(0, 8, size=100)  # the same errors in both
    a_N, b_N = hard_N + 1, hard_N
    assert paired_bootstrap_difference(a_N, b_N, counts_N) == pytest.approx((0.1, 0.1, 0.1))
    lo, hi = bootstrap_interval(a_N, counts_N)
    assert hi - lo > 0.05
    difference, lo, hi = paired_bootstrap_difference(b_N, a_N, counts_N)
    assert (difference, lo, hi) == pytest.approx((-0.1, -0.1, -0.1))


def test_si_sdr_is_the_published_formula():
    rng = np.random.default_rng(4)
    reference, noise = rng.normal(size=(2, 5000))
    noise -= noise @ reference / (reference @ reference) * reference  # then SI-SDR is the SNR
    expected = 10 * np.log10(np.sum(reference**2) / np.sum((0.1 * noise) ** 2))
    assert si_sdr_db(reference + 0.1 * noise, reference) == pytest.approx(expected, abs=1e-9)
    estimate = reference + rng.normal(size=5000)  # the same through the angle between the two
    cosine = estimate @ reference / np.linalg.norm(estimate) / np.linalg.norm(reference)
    expected = 10 * np.log10(cosine**2 / (1 - cosine**2))
    assert si_sdr_db(estimate, reference) == pytest.approx(expected, abs=1e-9)
    estimate32, reference32 = estimate.astype(np.float32), reference.astype(np.float32)
    assert si_sdr_db(estimate32, reference32) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=30)
@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_si_sdr_does_not_see_scale(scale, seed):
    reference, noise = np.random.default_rng(seed).normal(size=(2, 400))
    expected = si_sdr_db(reference + noise, reference)
    assert si_sdr_db(scale * (reference + noise), reference) == pytest.approx(expected, abs=1e-6)
    assert si_sdr_db(reference + noise, scale * reference) == pytest.approx(expected, abs=1e-6)


def test_si_sdr_at_the_edges():
    x = np.ones(10)
    assert si_sdr_db(x, x) == np.inf
    assert si_sdr_db(x, 0 * x) is None and si_sdr_db(0 * x, x) is None
    with pytest.raises(ValueError, match="one length"):
        si_sdr_db(x, x[:-1])


@pytest.mark.parametrize("measure", [pesq_wb, stoi])
def test_audio_quality_falls_with_noise_and_fails_to_none(measure):
    if measure is pesq_wb and not pesq_available():
        pytest.skip("pesq is not installed")
    speech = speech_like(1.5)
    noise = np.random.default_rng(9).normal(size=len(speech))
    scores = [measure(speech, speech + gain * noise) for gain in (0.0, 0.02, 0.2)]
    assert scores[0] > scores[1] > scores[2]
    assert scores[0] == pytest.approx({pesq_wb: 4.644, stoi: 1.0}[measure], abs=1e-3)
    assert measure(0 * speech, noise) is None  # no speech
    assert measure(speech[:800], noise[:800]) is None  # too short
    assert measure(speech[:0], noise[:0]) is None
    with pytest.raises(ValueError, match="one length"):
        measure(speech, noise[:-1])


def test_stoi_of_mostly_silence_is_not_invented():
    speech = speech_like(1.5)
    speech[3000:] = 0.0  # pystoi drops silent frames, warns, and returns 1e-5
    assert stoi(speech, speech + 0.01) is None


def test_quality_is_the_same_in_processes_and_in_order():
    speech = speech_like(1.0)
    noise = np.random.default_rng(5).normal(size=len(speech))
    pairs = [(speech, (speech + gain * noise).astype(np.float32)) for gain in (0.01, 0.1, 1.0)]
    pairs.append((0 * speech, noise))
    alone = list(quality(pairs))
    with worker_pool(2) as pool:
        assert list(quality(pairs, pool)) == alone
    assert alone[0]["stoi"] > alone[1]["stoi"] > alone[2]["stoi"]
    assert alone[3] == {"pesq": None, "stoi": None, "si_sdr": None}
    assert next(iter(quality([(speech, speech)])))["si_sdr"] is None  # infinite, which JSON cannot hold


def test_a_missing_pesq_gives_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    pesq_available.cache_clear()
    try:
        speech = speech_like(1.0)
        assert not pesq_available() and pesq_wb(speech, speech) is None
    finally:
        pesq_available.cache_clear()


def test_import_loads_numpy_alone():
    heavy = ["torch", "jiwer", "pesq", "pystoi", "scipy", "matplotlib", "jinja2"]
    code = f"import sys, rkd.metrics, rkd.report; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
