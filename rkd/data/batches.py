"""Batches of a store: which utterances, in which order, padded together.

Everything here is a pure function of the seed, the epoch and the store, never of workers, ranks or the past.

Shapes: B batch, T samples, L label tokens, P tokens of the text before.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rkd.audio import RATE_HZ
from rkd.data.store import Store
from rkd.draws import Draws, hash64, splitmix64
from rkd.errors import DataError


@dataclass
class Batch:
    """Utterances padded together.

    Attributes:
        ids, speakers, texts: of each utterance.
        clean_BT: 16 kHz speech in [-1, 1], zero beyond its end.
        noisy_BT: what the student hears: the clean speech until it is corrupted.
        target_BT: what a denoiser should make of that: the clean speech until it is corrupted; then None where no
            denoiser learns.
        speech_lengths_B: samples of speech.
        lengths_B: samples that a model hears: the speech, and for some utterances silence after it.
        levels_db: active speech levels, dB re full scale.
        labels_BL: label tokens and the end of text, padded with -100; empty without labels.
        draws: the utterances' random numbers.
        spoken_B: False where the student hears noise alone: text, labels and target are those of silence, while the
            clean speech, from which the noise has its level, is still there.
        on_policy: whether the labels are what the student itself wrote, and not what was said.
        before_BP: what a decoder is told was said before, padded with -100; None where none is told anything.
        stored: each teacher's streams that were computed before; empty without.
    """

    ids: list[str]
    speakers: list[str | None]
    texts: list[str | None]
    clean_BT: Tensor
    noisy_BT: Tensor
    target_BT: Tensor | None
    speech_lengths_B: Tensor
    lengths_B: Tensor
    levels_db: np.ndarray
    labels_BL: Tensor
    draws: Draws
    spoken_B: Tensor
    on_policy: bool = False
    before_BP: Tensor | None = None
    stored: Sequence[dict[str, Any]] = ()

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in memory from which a copy to a CUDA device goes on beside its work; the loader asks."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with all its tensors changed."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        once = {id(v): change(v) for v in {id(v): v for v in tensors.values()}.values()}  # speech can be target, too
        changed: dict[str, Any] = {k: once[id(v)] for k, v in tensors.items()}
        stored = [{name: stream.each(change) for name, stream in streams.items()} for streams in self.stored]
        return replace(self, **changed, stored=stored)

    def through(self, model: Any, waveform_BT: Tensor) -> Any:
        """Return the streams of a recogniser that hears waveforms of these utterances, given their labels."""
        told = () if self.before_BP is None else (self.before_BP,)  # most families have no use for it
        return model(waveform_BT, self.lengths_B, self.labels_BL, *told)

    def without_labels(self) -> Batch:
        """Return the batch for a model of which frames alone are wanted, whose tokens may have other numbers."""
        return replace(self, labels_BL=self.labels_BL.new_full((len(self.ids), 1), -100), before_BP=None)

    def spoken(self, ends: bool = False) -> Batch:
        """Return the batch without length and labels where nobody speaks: for those who compare with the speech.

        Args:
            ends: without the silence after it, too.
        """
        return replace(
            self,
            lengths_B=(self.speech_lengths_B if ends else self.lengths_B) * self.spoken_B,
            labels_BL=self.labels_BL.masked_fill(~self.spoken_B[:, None], -100),
        )

    @property
    def n_tokens(self) -> Tensor:
        """Label tokens in the batch, the end of text among them."""
        return (self.labels_BL >= 0).sum()

    @property
    def seconds(self) -> Tensor:
        """Seconds of audio that the models hear, padding left out."""
        return self.lengths_B.sum() / RATE_HZ


def pad_labels(labels: Sequence[Sequence[int]]) -> Tensor:
    """Return label tokens as ``(B, L)``, padded with -100."""
    labels_BL = torch.full((len(labels), max(map(len, labels))), -100, dtype=torch.long)
    for row, tokens in enumerate(labels):
        labels_BL[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return labels_BL


class Labels(Sequence[Sequence[int] | None]):
    """Label tokens of many utterances, kept in one array; None where an utterance has none.

    Args:
        found: of one utterance after the other.
    """

    def __init__(self, found: Iterable[Sequence[int] | None]):
        self._tokens, self._ends, self._none = array("i"), array("q", [0]), array("b")
        for tokens in found:
            self._tokens.extend(tokens or ())
            self._ends.append(len(self._tokens))
            self._none.append(tokens is None)

    @property
    def n_tokens(self) -> int:
        """Of all utterances together."""
        return len(self._tokens)

    def __len__(self) -> int:
        return len(self._none)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return None if self._none[i] else self._tokens[self._ends[i] : self._ends[i + 1]].tolist()


@dataclass
class Prompted:
    """Further forms of the labels, each of which a share of the samples has; which ones is drawn anew every epoch.

    Attributes:
        timestamps: share of the samples whose labels have timestamps.
        timed: the labels with timestamps, by utterance index; None where there are none.
        text_before: share of the samples that are told what was said before.
        before: how, by utterance index; empty where nothing was.
    """

    timestamps: float
    timed: Sequence[Sequence[int] | None]
    text_before: float
    before: Sequence[Sequence[int]]


class Batches:
    """The batches of a store, epoch by epoch.

    Args:
        store: the utterances.
        labels: label tokens by utterance index, None for those that are left out of every epoch; or None.
        batch_seconds: seconds of audio in a batch, padding counted: short clips make larger batches.
        seed: of order and draws.
        silence: share of the utterances that are followed by silence, up to ``window_seconds``.
        window_seconds: the models' window.
        weights: how often an utterance of each source of a mixture comes in an epoch: 2 is twice, 0.5 in every other
            epoch on average; 1 for a source that is not named.
        only: share of the utterances that the student does not hear, but the noise alone, with nothing to write.
        no_words: label tokens of an empty text.
        prompted: further forms of the labels; None: they are as they are.
        teachers: those whose outputs are stored, see `rkd.targets.StoredTeacher`.

    Raises:
        DataError: no utterance that has labels has a weight.
    """

    def __init__(
        self,
        store: Store,
        labels: Sequence[Sequence[int] | None] | None,
        batch_seconds: float,
        seed: int,
        silence: float = 0.0,
        window_seconds: float = 0.0,
        weights: Mapping[str, float] | None = None,
        only: float = 0.0,
        no_words: Sequence[int] = (),
        prompted: Prompted | None = None,
        teachers: Sequence[Any] = (),
    ):
        self.store = store
        self.labels = labels
        self.batch_samples = batch_seconds * RATE_HZ
        self.seed = seed
        self.silence = silence
        self.window = int(window_seconds * RATE_HZ)
        self.ids64 = np.array([hash64(name) for name in store.ids], dtype=np.uint64)
        self.only, self.no_words = only, no_words
        self.prompted, self.teachers = prompted, teachers
        self.weights = np.array([(weights or {}).get(source or "", 1.0) for source in store.sources])
        if labels is not None:
            self.weights[[tokens is None for tokens in labels]] = 0.0
            if not self.weights.any():
                raise DataError(
                    "no training utterance has labels and a weight above 0: set data.weights, or transcripts.*"
                )

    def entries(self, epoch: int) -> np.ndarray:
        """Return the utterances of an epoch, as numbers that stand for utterance and occurrence; see ``_split``."""
        times = np.floor(self.weights + Draws(self.seed, epoch, self.ids64).uniform("times")).astype(np.int64)
        utterances = np.repeat(np.arange(len(times)), times)
        occurrences = np.arange(len(utterances)) - np.repeat(np.cumsum(times) - times, times)
        return occurrences * len(times) + utterances

    def _split(self, epoch: int, entries: np.ndarray) -> tuple[np.ndarray, Draws]:
        """Return the utterances of entries, and their draws: each occurrence in an epoch has noise of its own."""
        occurrences, index = np.divmod(entries, len(self.store))
        ids64 = self.ids64[index]
        again = occurrences > 0
        ids64[again] = splitmix64(ids64[again] ^ occurrences[again].astype(np.uint64))
        return index, Draws(self.seed, epoch, ids64)

    def heard_lengths(self, draws: Draws, index: np.ndarray) -> np.ndarray:
        """Return how many samples a model hears of each utterance: its speech, and the silence drawn after it."""
        lengths = self.store.n_samples[index].astype(np.int64)
        room = np.maximum(self.window - lengths, 0)
        silent = draws.uniform("silence") < self.silence
        return lengths + np.where(silent, draws.uniform("silence.length") * room, 0).astype(np.int64)

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of an epoch, for ``collate``; an utterance's index is its first entry.

        Utterances of similar length are batched together, in random order within a length and between batches.
        """
        entries = self.entries(epoch)
        index, draws = self._split(epoch, entries)
        lengths = self.heard_lengths(draws, index)
        # Buckets an eighth of an octave wide: no more than 9% of a batch is padding.
        bucket = np.floor(np.log2(np.maximum(lengths, 1)) * 8)
        order = np.lexsort((draws.uniform("order"), bucket))
        batches: list[list[int]] = [[]]
        longest = 0
        for i in order:
            longest = max(longest, lengths[i])
            if batches[-1] and longest * (len(batches[-1]) + 1) > self.batch_samples:
                batches.append([])
                longest = lengths[i]
            batches[-1].append(int(i))
        # The few longest are left over: fill up their batch, so that every process has a share of it.
        while (
            len(batches) > 1
            and len(batches[-1]) + 1 < len(batches[-2])
            and longest * (len(batches[-1]) + 1) <= self.batch_samples
        ):
            batches[-1].append(batches[-2].pop())
        shuffled = np.argsort(draws.rows(np.array([batch[0] for batch in batches])).uniform("batch order"))
        return [entries[batches[i]] for i in shuffled]

    def collate(self, epoch: int, entries: np.ndarray) -> Batch:
        """Read utterances and pad them together."""
        index, draws = self._split(epoch, entries)
        speech_lengths = self.store.n_samples[index].astype(np.int64)
        lengths = self.heard_lengths(draws, index)
        pcm_BT = np.zeros((len(index), int(lengths.max())), dtype=np.int16)
        for row, i in enumerate(index):
            pcm_BT[row, : speech_lengths[row]] = self.store.pcm(int(i))
        clean_BT = torch.from_numpy(pcm_BT).float() / 32768.0
        spoken = draws.uniform("only") >= self.only
        spoken_B = torch.from_numpy(spoken)
        heard_BT = clean_BT if spoken.all() else clean_BT * spoken_B[:, None]
        written = [(self.labels[i] if self.labels is not None else None) or [] for i in index]
        before: list[Sequence[int]] = [[] for _ in index]
        if self.prompted:
            p = self.prompted
            timed = draws.uniform("timestamps") < p.timestamps
            told = (draws.uniform("text before") < p.text_before) & spoken
            written = [(p.timed[i] if yes else None) or w for i, w, yes in zip(index, written, timed, strict=True)]
            before = [p.before[i] if yes else [] for i, yes in zip(index, told, strict=True)]
        labels_BL = pad_labels([w if speaks else self.no_words for w, speaks in zip(written, spoken, strict=True)])
        return Batch(
            ids=[self.store.ids[i] for i in index],
            speakers=[self.store.speakers[i] for i in index],
            texts=[self.store.texts[i] if speaks else "" for i, speaks in zip(index, spoken, strict=True)],
            clean_BT=clean_BT,
            noisy_BT=heard_BT,
            target_BT=heard_BT,
            speech_lengths_B=torch.from_numpy(speech_lengths),
            lengths_B=torch.from_numpy(lengths),
            levels_db=self.store.levels_db[index],
            labels_BL=labels_BL,
            draws=draws,
            spoken_B=spoken_B,
            before_BP=pad_labels(before) if any(before) else None,
            stored=[teacher.streams(index, labels_BL.shape[1]) for teacher in self.teachers],
        )

    def once(self, only: Container[str] | None = None) -> Iterator[Batch]:
        """Yield every utterance, or those of some ids, once, longest first: what an evaluation reads."""
        order = np.argsort(-self.store.n_samples, kind="stable")
        if only is not None:
            order = order[np.array([name in only for name in self.store.ids])[order]]
        start = 0
        while start < len(order):
            longest = int(self.store.n_samples[order[start]])
            size = max(1, int(self.batch_samples // longest))
            yield self.collate(0, order[start : start + size])
            start += size


class _Sequence(torch.utils.data.IterableDataset):
    """The endless sequence of a rank's batches from a position on, shared out among the reading processes."""

    def __init__(self, batches: Batches, start: int, rank: int, world: int):
        self.batches, self.start, self.rank, self.world = batches, start, rank, world

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        worker_id, n_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        position = 0
        for epoch in itertools.count():
            for index in self.batches.epoch(epoch):
                # The loader takes from its processes in turn, so this keeps the order.
                if position >= self.start and (position - self.start) % n_workers == worker_id:
                    yield self.batches.collate(epoch, index[self.rank :: self.world])
                position += 1


def stream(
    batches: Batches, start: int, rank: int = 0, world: int = 1, workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """Yield a rank's share of the batches without end, from batch number ``start`` on.

    The ranks' shares of a batch make up the batch; the number of workers changes nothing but the speed.
    """
    return iter(
        torch.utils.data.DataLoader(
            _Sequence(batches, start, rank, world),
            batch_size=None,
            num_workers=workers,
            pin_memory=pin,
            # The loader draws a seed that nothing here uses; from the global generator it would shift the dropout.
            generator=torch.Generator(),
        )
    )
