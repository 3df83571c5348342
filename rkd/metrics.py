"""Measures of recognition (WER, CER) and of audio quality (PESQ, STOI, SI-SDR), with bootstrap intervals.

A figure that cannot be computed is ``None``; callers count those, and nothing is put in their place.
"""

# N utterances, T samples, R bootstrap resamples

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

# The worker processes of `quality` import this module: NumPy is all that it may need at import.

_RATE_HZ = 16_000
_BLOCK = 2**18  # drawn indices held at once by the bootstrap (2 MiB)


class Errors(NamedTuple):
    """Edit operations that turn a reference into a hypothesis, and the length of the reference."""

    substitutions: int
    deletions: int
    insertions: int
    n_reference: int

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions


class Chunk(NamedTuple):
    """A stretch of an alignment: ``kind`` is equal, substitute, delete or insert."""

    kind: str
    reference: list[str]
    hypothesis: list[str]


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Count word errors. Words are separated by white space; the texts are compared as they are, not normalised."""
    import jiwer

    return _errors(jiwer.process_words(reference, hypothesis))


def character_errors(reference: str, hypothesis: str) -> Errors:
    """Count character errors, spaces between words included."""
    import jiwer

    return _errors(jiwer.process_characters(reference, hypothesis))


def _errors(output) -> Errors:
    n_reference = output.hits + output.substitutions + output.deletions
    return Errors(output.substitutions, output.deletions, output.insertions, n_reference)


def align_words(reference: str, hypothesis: str) -> list[Chunk]:
    """Align two texts word by word, with the fewest errors."""
    import jiwer

    output = jiwer.process_words(reference, hypothesis)
    reference_words, hypothesis_words = output.references[0], output.hypotheses[0]
    return [
        Chunk(
            chunk.type,
            reference_words[chunk.ref_start_idx : chunk.ref_end_idx],
            hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx],
        )
        for chunk in output.alignments[0]
    ]


def error_rate(errors: Iterable[Errors]) -> float | None:
    """Return all errors over all reference words (or characters); ``None`` without any reference words."""
    errors = list(errors)
    n_reference = sum(e.n_reference for e in errors)
    return sum(e.total for e in errors) / n_reference if n_reference else None


def bootstrap_interval(
    errors_N: Sequence[int] | np.ndarray,
    counts_N: Sequence[int] | np.ndarray,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the 95% percentile interval of an error rate, resampling utterances.

    Utterances are drawn with replacement, and errors and words summed over each draw (Bisani & Ney, 2004, "Bootstrap
    estimates for confidence intervals in ASR performance evaluation").

    Args:
        errors_N: errors of each utterance.
        counts_N: reference words of each utterance.

    Returns:
        Lower and upper end as fractions; ``None`` with fewer than two utterances or no reference words.
    """
    errors_N, counts_N = np.asarray(errors_N, dtype=np.float64), np.asarray(counts_N, dtype=np.float64)
    rates_R = _resampled_ratios(errors_N, counts_N, n_resamples, seed)
    return None if rates_R is None else _percentiles(rates_R)


def paired_bootstrap_difference(
    errors_a_N: Sequence[int] | np.ndarray,
    errors_b_N: Sequence[int] | np.ndarray,
    counts_N: Sequence[int] | np.ndarray,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float] | None:
    """Return how much higher the error rate of system a is than that of b on the same utterances.

    Both systems meet the same draw of utterances, so that what is hard for both cancels (Bisani & Ney, 2004).

    Returns:
        Difference of the rates (a - b) and its 95% interval, as fractions; ``None`` where there is no interval.
    """
    errors_a_N, errors_b_N = np.asarray(errors_a_N, dtype=np.float64), np.asarray(errors_b_N, dtype=np.float64)
    # The rates share their denominator in every draw, so the difference is itself a ratio of sums.
    errors_N, counts_N = errors_a_N - errors_b_N, np.asarray(counts_N, dtype=np.float64)
    differences_R = _resampled_ratios(errors_N, counts_N, n_resamples, seed)
    if differences_R is None:
        return None
    return float(errors_N.sum() / counts_N.sum()), *_percentiles(differences_R)


def _resampled_ratios(errors_N: np.ndarray, counts_N: np.ndarray, n_resamples: int, seed: int) -> np.ndarray | None:
    if errors_N.shape != counts_N.shape:
        raise ValueError(f"errors {errors_N.shape} and counts {counts_N.shape} are of different utterances")
    n = len(errors_N)
    if n < 2 or counts_N.sum() == 0:
        return None
    rng = np.random.default_rng(seed)
    sums_R2 = np.empty((n_resamples, 2))
    block = max(1, _BLOCK // n)
    for start in range(0, n_resamples, block):
        stop = min(start + block, n_resamples)
        index_RN = rng.integers(n, size=(stop - start, n))
        sums_R2[start:stop, 0] = errors_N[index_RN].sum(axis=1)
        sums_R2[start:stop, 1] = counts_N[index_RN].sum(axis=1)
    sums_R2 = sums_R2[sums_R2[:, 1] > 0]  # a draw of empty references alone has no rate
    return sums_R2[:, 0] / sums_R2[:, 1] if len(sums_R2) else None


def _percentiles(values_R: np.ndarray) -> tuple[float, float]:
    lo, hi = np.percentile(values_R, [2.5, 97.5])
    return float(lo), float(hi)


def si_sdr_db(estimate: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019, "SDR - half-baked or well
    done?", equation 4); means are not removed, as there.

    Args:
        estimate: samples, shape ``(T,)``.
        reference: samples of the clean signal, shape ``(T,)``.

    Returns:
        The ratio; infinite for an exact copy; ``None`` for a silent reference or a silent estimate.

    Raises:
        ValueError: the shapes differ.
    """
    estimate_T, reference_T = _same_length(estimate, reference)
    energy = reference_T @ reference_T
    if energy == 0 or not estimate_T.any():
        return None
    target_T = (estimate_T @ reference_T / energy) * reference_T
    residual_T = estimate_T - target_T
    with np.errstate(divide="ignore"):
        return float(10 * (np.log10(target_T @ target_T) - np.log10(residual_T @ residual_T)))


@functools.cache
def pesq_available() -> bool:
    """Tell whether the pesq package can be imported (it is compiled at installation and needs a C compiler)."""
    try:
        import pesq  # noqa: F401
    except ImportError:
        return False
    return True


def pesq_wb(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """Return wide-band PESQ (ITU-T P.862.2, MOS-LQO from about 1 to 4.64) of 16 kHz audio.

    Args:
        reference: clean samples in [-1, 1], shape ``(T,)``.
        degraded: the samples to judge, aligned with the reference, shape ``(T,)``.

    Returns:
        The score; ``None`` where PESQ finds no speech or less than 1/4 s, or where the package is missing.

    Raises:
        ValueError: the shapes differ.
    """
    reference_T, degraded_T = _same_length(reference, degraded)
    if not pesq_available() or not reference_T.any() or not degraded_T.any():
        return None
    import pesq

    try:
        score = pesq.pesq(_RATE_HZ, reference_T, degraded_T, "wb")
    except pesq.PesqError:
        return None
    return float(score) if np.isfinite(score) else None


def stoi(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """Return short-time objective intelligibility (Taal et al., 2011; at most 1) of 16 kHz audio.

    Args:
        reference: clean samples, shape ``(T,)``.
        degraded: the samples to judge, aligned with the reference, shape ``(T,)``.

    Returns:
        The score; ``None`` with fewer than 30 frames (0.4 s) of speech.

    Raises:
        ValueError: the shapes differ.
    """
    from pystoi import stoi as pystoi_stoi

    reference_T, degraded_T = _same_length(reference, degraded)
    if not reference_T.any() or len(reference_T) < 0.4 * _RATE_HZ:
        return None
    with warnings.catch_warnings():
        # pystoi warns and returns 1e-5 where too little speech is left; that is no measurement.
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            score = pystoi_stoi(reference_T, degraded_T, _RATE_HZ)
        except RuntimeWarning:
            return None
    return float(score) if np.isfinite(score) else None


def quality(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], pool: Executor | None = None
) -> Iterable[dict[str, float | None]]:
    """Judge (reference, degraded) pairs of 16 kHz audio.

    Args:
        pairs: clean samples and the samples to judge, each ``(T,)`` in [-1, 1].
        pool: of processes, which begin at once; None: this one does it.

    Returns:
        ``{"pesq", "stoi", "si_sdr"}`` a pair, in order, once they are asked for; ``None`` where a measure does not
        apply or failed, which for SI-SDR includes an exact copy of the reference.
    """
    return pool.map(_judge, pairs) if pool else map(_judge, pairs)


def _judge(pair: tuple[np.ndarray, np.ndarray]) -> dict[str, float | None]:
    reference, degraded = pair
    si_sdr = si_sdr_db(degraded, reference)
    return {
        "pesq": pesq_wb(reference, degraded),
        "stoi": stoi(reference, degraded),
        "si_sdr": si_sdr if si_sdr is not None and np.isfinite(si_sdr) else None,
    }


def _same_length(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a_T, b_T = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a_T.ndim != 1 or a_T.shape != b_T.shape:
        raise ValueError(f"two signals of one length are needed, not {a_T.shape} and {b_T.shape}")
    return a_T, b_T
