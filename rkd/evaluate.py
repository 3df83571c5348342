"""The condition x metric table: every system on the same fixed mixtures.

Shapes: B batch, T samples.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rkd.console import track
from rkd.data.batches import Batch, Batches
from rkd.draws import unit_hash
from rkd.errors import DataError
from rkd.metrics import Errors, bootstrap_interval, character_errors, error_rate, quality, word_errors
from rkd.models.base import Recogniser
from rkd.models.enhanced import Enhanced
from rkd.noise import Corruption
from rkd.processes import worker_pool

QUALITY = ("pesq", "stoi", "si_sdr")
NOISE_ONLY = "noise only"
N_NOISE_ONLY = 50  # utterances whose noise is heard without their speech


@dataclass
class Condition:
    """What the systems hear.

    Attributes:
        condition: ``clean``, ``noise``, ``reverb``, ``noise+reverb``, or ``noise only``: the noise of a mixture without
            its speech.
        noise: name of the noise type.
        seen: whether the noise was trained on (its kind or class: never the recording).
        snr_db: signal-to-noise ratio.
        corruption: makes it; None leaves the speech clean.
        room: ``measured`` or ``simulated``, or both; None without a room.
    """

    condition: str
    noise: str | None = None
    seen: bool | None = None
    snr_db: float | None = None
    corruption: Corruption | None = None
    room: str | None = None

    def key(self) -> dict[str, Any]:
        return {
            "condition": self.condition,
            "noise": self.noise,
            "seen": self.seen,
            "snr_db": self.snr_db,
            "room": self.room,
        }

    def label(self) -> str:
        """A name for progress lines and hashes, e.g. ``noise babble (seen) 5 dB``."""
        parts = [self.condition]
        if self.noise is not None:
            parts.append(f"{self.noise} ({'seen' if self.seen else 'unseen'}) {self.snr_db:g} dB")
        return " ".join(parts)


def mixtures(batch: Batch, condition: Condition) -> np.ndarray:
    """Return the batch as every system hears it: 16-bit PCM ``(B, T)``."""
    heard_BT = batch.clean_BT
    if condition.corruption is not None:
        silent_B = torch.zeros_like(batch.spoken_B) if condition.condition == NOISE_ONLY else None
        heard_BT = condition.corruption(
            batch.clean_BT, batch.speech_lengths_B, batch.levels_db, batch.speakers, batch.draws, silent_B
        ).waveform_BT
    return (heard_BT * 32768.0).round().clamp(-32768, 32767).to(torch.int16).cpu().numpy()


def evaluate(
    systems: Mapping[str, Recogniser],
    conditions: Sequence[Condition],
    batches: Batches,
    max_utterances: int | None,
    references: Mapping[str, str],
    normalise: Callable[[str], str],
    device: torch.device,
    beams: int,
    n_quality: int,
    workers: int,
    keep: Callable[[list[dict[str, Any]]], None],
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str], dict[str, float]]:
    """Transcribe every condition with every system.

    Args:
        systems: recognisers by name, in eval mode on the device.
        conditions: what they hear.
        batches: the test utterances; the same mixtures on every call.
        max_utterances: how many of them, chosen by the hashes of their ids; None for all.
        references: normalised reference text by utterance id.
        normalise: applied to what a system writes.
        beams: 1 is greedy.
        n_quality: utterances a condition whose PESQ, STOI and SI-SDR against the clean speech are measured: of what the
            systems hear, and of what the denoisers that they wear make of it.
        workers: processes for those.
        keep: is given the rows of ``utterances.parquet``, those of a system in a condition at a time.

    Returns:
        Rows of ``results.json`` by system, the SHA-256 of each condition's mixtures, and each system's real-time factor
        (processing time over audio, batched, on clean speech).
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    hashes: dict[str, str] = {}
    rtf: dict[str, float] = {}
    by_hash = sorted(references, key=lambda name: unit_hash(f"evaluate/{name}"))
    references = {name: references[name] for name in by_hash[:max_utterances]}
    judged = set(by_hash[:n_quality])
    denoisers = {system: model.denoiser for system, model in systems.items() if isinstance(model, Enhanced)}
    worn = dict.fromkeys(denoisers.values())  # two systems may wear the same
    first = next(batches.once(references)).to(device)
    for model in systems.values():  # what a first call sets up is not timed
        model.transcribe(first.clean_BT[:1], first.speech_lengths_B[:1], beams)
    with Judges(workers) as judges:
        for number, condition in enumerate(track(conditions, "conditions")):
            silent = condition.condition == NOISE_ONLY
            wanted = dict.fromkeys(list(references)[:N_NOISE_ONLY], "") if silent else references
            digest = hashlib.sha256()
            texts: dict[str, dict[str, str]] = {name: {} for name in systems}
            spent = dict.fromkeys(systems, 0.0)
            audio_seconds = 0.0
            # What is judged, by the denoiser that made it; None for what all systems hear.
            pairs: dict[Any, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
            for batch in batches.once(wanted):
                batch = batch.to(device)
                pcm_BT = mixtures(batch, condition)
                heard_BT = torch.from_numpy(pcm_BT).to(device).float() / 32768.0
                audio_seconds += float(batch.seconds)
                for row, (name, length) in enumerate(zip(batch.ids, batch.speech_lengths_B.tolist(), strict=True)):
                    digest.update(name.encode() + pcm_BT[row, :length].tobytes())
                rows_judged = [row for row, name in enumerate(batch.ids) if name in judged and not silent]
                pairs[None] += with_clean(batch, rows_judged, heard_BT[rows_judged])
                for system, model in systems.items():
                    start = time.perf_counter()
                    written = model.transcribe(heard_BT, batch.speech_lengths_B, beams)
                    spent[system] += time.perf_counter() - start
                    texts[system].update(zip(batch.ids, map(normalise, written), strict=True))
                for denoiser in worn if rows_judged else ():
                    with torch.no_grad():
                        denoised_BT = denoiser(heard_BT[rows_judged], batch.speech_lengths_B[rows_judged])
                    pairs[denoiser] += with_clean(batch, rows_judged, denoised_BT)
            judges.judge(number, pairs)
            hashes[condition.label()] = digest.hexdigest()
            for system in systems:
                summary, utterance_rows = score(wanted, texts[system])
                n_written = sum(len(texts[system][name].split()) for name in wanted) if silent else None
                summary |= {"words_on_noise": n_written, "audio_seconds": audio_seconds}
                rows[system].append({**condition.key(), **summary})
                keep([{"system": system, **condition.key(), **u} for u in utterance_rows])
                if condition.condition == "clean":
                    rtf[system] = spent[system] / audio_seconds
        summaries = judges.finish()
    for number in range(len(conditions)):
        for system in systems:
            rows[system][number].update(summaries[number, None])
            denoised = summaries.get((number, denoisers[system]), {}) if system in denoisers else {}
            rows[system][number].update({f"denoised_{metric}": denoised.get(metric) for metric in QUALITY})
    return rows, hashes, rtf


class Judges:
    """Processes that measure PESQ, STOI and SI-SDR of what was heard while the systems hear the next condition.

    Args:
        workers: how many; 1 is this process itself.
    """

    def __init__(self, workers: int):
        self.pool = worker_pool(workers) if workers > 1 else None
        self.summaries: dict[tuple[int, Any], dict[str, Any]] = {}
        self._begun: dict[tuple[int, Any], Iterable[dict[str, float | None]]] = {}

    def __enter__(self) -> Judges:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def judge(self, number: int, pairs: Mapping[Any, Sequence[tuple[np.ndarray, np.ndarray]]]) -> None:
        """Begin with a condition; first wait for the one before, so that no more audio than that is kept.

        Args:
            number: of the condition.
            pairs: clean speech and what is judged by it, by what made that.
        """
        self._wait()
        self._begun = {(number, maker): quality(group, self.pool) for maker, group in pairs.items()}

    def finish(self) -> dict[tuple[int, Any], dict[str, Any]]:
        """Wait for the last; return the means of each condition and maker."""
        self._wait()
        return self.summaries

    def _wait(self) -> None:
        self.summaries |= {key: summarise_quality(list(found)) for key, found in self._begun.items()}
        self._begun = {}


def with_clean(batch: Batch, rows: Sequence[int], signals_BT: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the clean speech of some rows of a batch, each with a signal that is to be judged by it."""
    lengths = [int(batch.speech_lengths_B[row]) for row in rows]
    return [
        (batch.clean_BT[row, :n].cpu().numpy(), signal_T[:n].cpu().numpy())
        for row, n, signal_T in zip(rows, lengths, signals_BT, strict=True)
    ]


def score(references: Mapping[str, str], texts: Mapping[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return error rates with their interval, and the rows of the single utterances."""
    words: list[Errors] = []
    characters: list[Errors] = []
    rows = []
    for name, reference in references.items():
        errors = word_errors(reference, texts[name])
        words.append(errors)
        characters.append(character_errors(reference, texts[name]))
        rows.append(
            {
                "id": name, "reference": reference, "hypothesis": texts[name],
                "errors": errors.total, "n_words": errors.n_reference,
            }
        )  # fmt: skip
    interval = bootstrap_interval(np.array([e.total for e in words]), np.array([e.n_reference for e in words]))
    summary = {
        "n_utterances": len(words),
        "n_words": sum(e.n_reference for e in words),
        "wer": error_rate(words),
        "wer_ci": list(interval) if interval else None,
        "cer": error_rate(characters),
    }
    return summary, rows


def summarise_quality(judgements: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Return mean PESQ, STOI and SI-SDR of those that could be measured, and how many could not."""
    summary: dict[str, Any] = {"n_quality": len(judgements)}
    for metric in QUALITY:
        values = [value for j in judgements if (value := j[metric]) is not None]
        summary[metric] = float(np.mean(values)) if values else None
    summary["n_quality_failed"] = sum(j["pesq"] is None for j in judgements)
    return summary


def validation_wer(
    model: Recogniser, heard: Sequence[tuple[torch.Tensor, torch.Tensor, list[str]]], normalise: Callable[[str], str]
) -> float:
    """Return the word error rate on prepared batches of (waveforms ``(B, T)``, lengths ``(B,)``, references).

    Args:
        normalise: applied to references and to what the model writes.

    Raises:
        DataError: the references have no words.
    """
    errors = []
    for waveform_BT, lengths_B, references in heard:
        for reference, text in zip(references, model.transcribe(waveform_BT, lengths_B), strict=True):
            errors.append(word_errors(normalise(reference), normalise(text)))
    rate = error_rate(errors)
    if rate is None:
        raise DataError(
            "the validation utterances have no words to compare with, so nothing tells which weights are the best; "
            "raise trainer.validate_utterances, or give the corpus's validation split text"
        )
    return rate
