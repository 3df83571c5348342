"""From a source to a speech store: resampled, checked, measured, and what was left out with the reason."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rkd import audio
from rkd.console import track
from rkd.data.perturbation import perturbations, perturbed
from rkd.data.sources import Rejected, Source, Utterance
from rkd.data.store import SPLITS, StoreWriter, part_path, part_tables
from rkd.draws import hash64
from rkd.errors import DataError, ResourceError
from rkd.normalisation import normaliser as of_name
from rkd.processes import worker_pool

T = TypeVar("T")
R = TypeVar("R")

PART = 500  # utterances in a file of the store: what a process does at a time, and what an interruption may cost
SILENT_DB = -80.0  # an active level below this, less than 3 steps of 16 bit, is not a recording of speech


def write_store(
    source: Source,
    folder: str | Path,
    min_seconds: float = 0.1,
    max_seconds: float = 30.0,
    normaliser: str = "basic",
    max_utterances: int | None = None,
    speed: Sequence[float] = (),
    tempo: Sequence[float] = (),
    pitch_shift: Sequence[float] = (),
    workers: int = 1,
    total: int | None = None,
) -> dict[str, Any]:
    """Write everything that a source lists into a speech store: 16 kHz, 16 bit, with active levels.

    What is too short, too long, silent, has an id twice, or is in part of a corpus without text, is left out and listed
    in ``rejected.jsonl`` with the reason. If nothing has text, the corpus is unlabelled. Parts that an interrupted call
    wrote are kept.

    Args:
        source: the source.
        folder: where the parts, ``rejected.jsonl`` and ``summary.json`` go; it has to exist.
        min_seconds, max_seconds: limits of what is kept.
        normaliser: of the texts, see `rkd.normalisation`.
        max_utterances: of each split, of each source of a mixture, the first ones are taken; None: all.
        speed, tempo, pitch_shift: each of these training utterances is stored at these speeds and tempos (factors),
            too, and at these pitches (semitones).
        workers: processes that decode and resample; the result does not depend on it.
        total: about how many utterances there are, if that is known; for people who wait.

    Returns:
        The summary: ``has_text``; ``splits``: name -> ``utterances``, ``hours``, ``words``, ``speakers``;
        ``perturbed``: of the training utterances, those at another speed, tempo or pitch, ``sp0.9`` -> count;
        ``rejected``: kind of reason -> count.

    Raises:
        DataError: the source lists nothing, or a split is left empty.
        ConfigError: an unknown normaliser.
        ResourceError: a process ended, probably for lack of memory.
    """
    folder = Path(folder)
    of_name(normaliser)  # an unknown one fails before the work
    write = partial(write_part, folder=folder, min_seconds=min_seconds, max_seconds=max_seconds, normaliser=normaliser)
    changes = perturbations(speed, tempo, pitch_shift)
    listed = perturbed(first(unique(source.utterances()), max_utterances), changes)
    numbered = enumerate(in_parts(listed, PART))
    todo = ((n, items) for n, items in numbered if not part_path(folder, n).exists())
    written = run_in_processes(write, todo, workers)
    there = PART * len(list(folder.glob("part-*.arrow")))
    for _ in track(written, "reading speech", total, size=int, done=there):
        pass
    if not part_path(folder, 0).exists():
        raise DataError("the corpus holds no recordings: its lists are empty")
    return finish_store(folder, [change.name for change in changes])


def unique(found: Iterable[Utterance | Rejected]) -> Iterator[Utterance | Rejected]:
    """Yield what a source lists; of those with the same id only the first is an utterance."""
    seen: set[int] = set()
    for one in found:
        if isinstance(one, Utterance):
            key = hash64(one.id)  # of which a million need less memory than of texts
            if key in seen:
                one = Rejected(one.id, "id is not unique")
            seen.add(key)
        yield one


def first(found: Iterable[Utterance | Rejected], n: int | None) -> Iterator[Utterance | Rejected]:
    """Yield what a source lists, of each source and split no more than the first ``n`` utterances; None for all."""
    taken = Counter[tuple[str | None, str]]()
    for one in found:
        if n is not None and isinstance(one, Utterance):
            taken[one.source, one.split] += 1
            if taken[one.source, one.split] > n:
                continue
        yield one


def in_parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of so many items; the last may be shorter."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def run_in_processes(work: Callable[[T], R], jobs: Iterable[T], workers: int) -> Iterator[R]:
    """Yield what ``work`` returns for each job, in their order; a single job stays in this process.

    Jobs are taken as they are needed, two for each worker ahead.

    Raises:
        ResourceError: a process ended without an answer.
    """
    jobs = iter(jobs)
    ahead = deque(islice(jobs, 2))
    if workers == 1 or len(ahead) < 2:
        yield from map(work, chain(ahead, jobs))
        return
    with worker_pool(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for job in chain(ahead, jobs):
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, job))
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ResourceError(
                f"one of the {workers} processes that read the corpus was ended, probably for lack of memory; "
                "try again with prepare_workers=1: what is done is kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_part(
    job: tuple[int, Sequence[Utterance | Rejected]],
    folder: Path,
    min_seconds: float,
    max_seconds: float,
    normaliser: str,
) -> int:
    """Write a numbered part of a store, and beside it what was rejected; return how many items there were."""
    number, items = job
    rejected: list[Rejected] = []
    with StoreWriter(part_path(folder, number)) as writer:
        for item in items:
            try:
                kept = item if isinstance(item, Rejected) else _finish(item, min_seconds, max_seconds, normaliser)
            except DataError as error:
                kept = Rejected(item.id, str(error))
            if isinstance(kept, Rejected):
                rejected.append(kept)
            else:
                writer.add(*kept)
        write_rejected(part_path(folder, number).with_suffix(".rejected.jsonl"), rejected)
    return len(items)


def _finish(
    found: Utterance, min_seconds: float, max_seconds: float, normaliser: str
) -> tuple[str, str, str | None, str | None, str | None, str | None, np.ndarray, float] | Rejected:
    """Return the columns of an utterance as it is stored."""
    text = None
    if found.text and found.text.strip():
        text = of_name(normaliser)(found.text)
        if not text:
            return Rejected(found.id, f"text without words: {found.text.strip()!r}")
    waveform_T, rate_hz = found.read()
    seconds = len(waveform_T) / rate_hz
    if seconds < min_seconds:
        return Rejected(found.id, f"too short: {seconds:.3f} s, data.min_seconds={min_seconds:g}")
    if seconds > max_seconds:
        return Rejected(found.id, f"too long: {seconds:.1f} s, data.max_seconds={max_seconds:g}")
    pcm_T = audio.to_pcm16(audio.resample(waveform_T, rate_hz))
    level_db = audio.active_level_db(audio.from_pcm16(pcm_T))
    if level_db < SILENT_DB:
        return Rejected(found.id, f"silent: active level {level_db:.0f} dB re full scale")
    return found.id, found.split, text, found.speaker, found.language, found.source, pcm_T, level_db


def finish_store(folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Write ``rejected.jsonl`` and ``summary.json`` of a store whose parts are complete; see `write_store`."""
    tables = part_tables(folder)
    has_text = any(text is not None for table in tables for text in table.column("text"))
    counts = {split: _SplitCount() for split in SPLITS}
    made_by = Counter[str](dict.fromkeys(changes, 0))
    rejected = Counter[str]()
    with (folder / "rejected.jsonl.tmp").open("w", encoding="utf-8") as file:
        for table in tables:
            for id, split, text, speaker, n in zip(*map(table.column, _COUNTED), strict=True):
                if has_text and text is None:
                    without = Rejected(id, "not used for want of text: it is stored, but the others have text")
                    rejected[without.kind] += 1
                    file.write(rejected_line(without))
                else:
                    counts[split].add(n, text, speaker)
                    made_by.update({id.rpartition("#")[2]} & set(changes))
        for path in sorted(folder.glob("part-*.rejected.jsonl")):
            for line in path.open(encoding="utf-8"):
                rejected[Rejected(**json.loads(line)).kind] += 1
                file.write(line)
    (folder / "rejected.jsonl.tmp").replace(folder / "rejected.jsonl")
    summary = {
        "has_text": has_text,
        "splits": {split: count.summary() for split, count in counts.items()},
        "perturbed": dict(made_by),
        "rejected": dict(rejected.most_common()),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for split in SPLITS:
        if not counts[split].n_utterances:
            raise DataError(
                f"no utterance is left for {split}{explain_rejected(rejected)}; "
                + (f"{folder / 'rejected.jsonl'} says which; " if rejected else "")
                + "change data.split, data.fractions or the number of utterances, or add recordings"
            )
    return summary


_COUNTED = ("id", "split", "text", "speaker", "n_samples")


class _SplitCount:
    def __init__(self) -> None:
        self.speakers: set[str] = set()
        self.n_utterances = self.n_samples = self.n_words = 0

    def add(self, n_samples: int, text: str | None, speaker: str | None) -> None:
        self.n_utterances += 1
        self.n_samples += n_samples
        self.n_words += len((text or "").split())
        if speaker is not None:
            self.speakers.add(speaker)

    def summary(self) -> dict[str, Any]:
        return {
            "utterances": self.n_utterances,
            "hours": self.n_samples / audio.RATE_HZ / 3600,
            "words": self.n_words,
            "speakers": len(self.speakers),
        }


def write_reports(folder: Path, rejected: Iterable[Rejected], summary: Mapping[str, Any]) -> None:
    """Write ``rejected.jsonl`` and ``summary.json``."""
    write_rejected(folder / "rejected.jsonl", rejected)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Write what was rejected, a line each."""
    path.write_text("".join(map(rejected_line, rejected)), encoding="utf-8")


def rejected_line(one: Rejected) -> str:
    """Return a line of ``rejected.jsonl``."""
    return json.dumps({"id": one.id, "reason": one.reason}, ensure_ascii=False) + "\n"


def count_rejected(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Return how often each kind of reason occurs, most frequent first."""
    return dict(Counter(one.kind for one in rejected).most_common())


def explain_rejected(counts: Mapping[str, int]) -> str:
    """Return the counts as a part of a message; empty if nothing was rejected."""
    counted = ", ".join(f"{kind}: {n}" for kind, n in counts.items())
    return f" ({sum(counts.values())} were rejected; {counted})" if counts else ""
