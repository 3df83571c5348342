"""From a source to a speech store: resampled, checked, measured, and what was left out with the reason."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rkd import audio
from rkd.console import track
from rkd.data.sources import Rejected, Source, Utterance
from rkd.data.store import SPLITS, StoreWriter
from rkd.errors import ConfigError, DataError

SILENT_DB = -80.0  # an active level below this, less than 3 steps of 16 bit, is not a recording of speech
NORMALISERS = ("basic", "none")


def normalise_text(text: str, normaliser: str) -> str:
    """Return a transcript as it is learned and scored.

    Args:
        text: the transcript.
        normaliser: ``basic``: Unicode NFKC, lower case, punctuation and symbols replaced by spaces except for
            apostrophes inside words, one space between words; ``none``: unchanged but for space around it.

    Raises:
        ConfigError: an unknown normaliser.
    """
    if normaliser == "none":
        return text.strip()
    if normaliser != "basic":
        raise ConfigError(f"data.normaliser={normaliser}: choose one of {', '.join(NORMALISERS)}")
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).replace("’", "'")
    # Letters, marks (they make up words in many scripts) and numbers stay.
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for part in kept.split() if (word := part.strip("'")))


def write_store(
    source: Source,
    folder: str | Path,
    min_seconds: float = 0.1,
    max_seconds: float = 30.0,
    normaliser: str = "basic",
) -> dict[str, Any]:
    """Write everything that a source yields into a speech store: 16 kHz, 16 bit, with active levels.

    What is too short, too long, silent, has an id twice, or is in part of a corpus without text, is left out and listed
    in ``rejected.jsonl`` with the reason. If nothing has text, the corpus is unlabelled.

    Args:
        source: the source.
        folder: where ``train.arrow``, ``validation.arrow``, ``test.arrow``, ``rejected.jsonl`` and ``summary.json`` go;
            it has to exist.
        min_seconds, max_seconds: limits of what is kept.
        normaliser: see `normalise_text`.

    Returns:
        The summary: ``has_text``; ``splits``: name -> ``utterances``, ``hours``, ``words``, ``speakers``;
        ``rejected``: kind of reason -> count.

    Raises:
        DataError: a split is left empty.
        ConfigError: an unknown normaliser.
    """
    folder = Path(folder)
    normalise_text("", normaliser)  # an unknown one fails before the work
    rejected: list[Rejected] = []
    seen: set[str] = set()
    counts = {(split, labelled): _SplitCount() for split in SPLITS for labelled in (True, False)}
    paths = {key: folder / f"{key[0]}{'' if key[1] else '.unlabelled'}.arrow" for key in counts}
    with ExitStack() as stack:
        # Whether those without text are wanted is known only at the end: they go into files of their own until then.
        writers = {key: stack.enter_context(StoreWriter(path)) for key, path in paths.items()}
        for found in track(source.utterances(), "reading speech"):
            kept = found if isinstance(found, Rejected) else _finish(found, min_seconds, max_seconds, normaliser)
            if not isinstance(kept, Rejected) and kept.id in seen:
                kept = Rejected(kept.id, "id is not unique")
            if isinstance(kept, Rejected):
                rejected.append(kept)
                continue
            seen.add(kept.id)
            key = (kept.split, kept.text is not None)
            writers[key].add(kept.id, kept.text, kept.speaker, kept.language, kept.source, kept.pcm_T, kept.level_db)
            counts[key].add(kept)
    has_text = any(counts[split, True].ids for split in SPLITS)
    for split in SPLITS:
        if has_text:
            rejected += [Rejected(id, "no text") for id in counts[split, False].ids]
        else:
            paths[split, False].replace(paths[split, True])
        paths[split, False].unlink(missing_ok=True)
    summary = {
        "has_text": has_text,
        "splits": {split: counts[split, has_text].summary() for split in SPLITS},
        "rejected": count_rejected(rejected),
    }
    write_reports(folder, rejected, summary)
    for split in SPLITS:
        if not counts[split, has_text].ids:
            raise DataError(
                f"no utterance is left for {split}{explain_rejected(rejected)}; "
                "change data.split, data.fractions or the number of utterances, or add recordings"
            )
    return summary


def write_reports(folder: Path, rejected: Iterable[Rejected], summary: Mapping[str, Any]) -> None:
    """Write ``rejected.jsonl`` and ``summary.json``."""
    lines = (json.dumps({"id": one.id, "reason": one.reason}, ensure_ascii=False) for one in rejected)
    (folder / "rejected.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def count_rejected(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Return how often each kind of reason occurs, most frequent first."""
    return dict(Counter(one.kind for one in rejected).most_common())


def explain_rejected(rejected: Sequence[Rejected]) -> str:
    """Return the counts as a part of a message; empty if nothing was rejected."""
    counted = ", ".join(f"{kind}: {n}" for kind, n in count_rejected(rejected).items())
    return f" ({len(rejected)} were rejected; {counted})" if rejected else ""


@dataclass(frozen=True)
class _Finished:
    """An utterance as it is stored."""

    id: str
    split: str
    text: str | None
    speaker: str | None
    language: str | None
    source: str | None
    pcm_T: np.ndarray
    level_db: float


class _SplitCount:
    def __init__(self) -> None:
        self.ids: list[str] = []
        self.speakers: set[str] = set()
        self.n_samples = self.n_words = 0

    def add(self, utterance: _Finished) -> None:
        self.ids.append(utterance.id)
        self.n_samples += len(utterance.pcm_T)
        self.n_words += len((utterance.text or "").split())
        if utterance.speaker is not None:
            self.speakers.add(utterance.speaker)

    def summary(self) -> dict[str, Any]:
        return {
            "utterances": len(self.ids),
            "hours": self.n_samples / audio.RATE_HZ / 3600,
            "words": self.n_words,
            "speakers": len(self.speakers),
        }


def _finish(found: Utterance, min_seconds: float, max_seconds: float, normaliser: str) -> _Finished | Rejected:
    seconds = len(found.waveform) / found.rate_hz
    if seconds < min_seconds:
        return Rejected(found.id, f"too short: {seconds:.3f} s, data.min_seconds={min_seconds:g}")
    if seconds > max_seconds:
        return Rejected(found.id, f"too long: {seconds:.1f} s, data.max_seconds={max_seconds:g}")
    text = None
    if found.text and found.text.strip():
        text = normalise_text(found.text, normaliser)
        if not text:
            return Rejected(found.id, f"text without words: {found.text.strip()!r}")
    pcm_T = audio.to_pcm16(audio.resample(found.waveform, found.rate_hz))
    level_db = audio.active_level_db(audio.from_pcm16(pcm_T))
    if level_db < SILENT_DB:
        return Rejected(found.id, f"silent: active level {level_db:.0f} dB re full scale")
    return _Finished(found.id, found.split, text, found.speaker, found.language, found.source, pcm_T, level_db)
