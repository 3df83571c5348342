"""Banks of recorded noise: trimmed, split, cut to a limit, and written to one Arrow file.

Shapes: T samples at 16 kHz, F frames of 20 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rkd import audio
from rkd.console import track
from rkd.data.banks.layouts import find_noise, noise_files
from rkd.data.banks.splits import in_turn, split_noise
from rkd.data.corpus import count_rejected, explain_rejected, write_reports
from rkd.data.sources import Rejected
from rkd.data.store import SPLITS, ArrowWriter, PcmTable
from rkd.errors import DataError

MIN_NOISE_SECONDS = 0.5
_FRAME = audio.RATE_HZ // 50
_FADE = audio.RATE_HZ // 200
_SILENT_DB, _SILENT_BELOW_LOUDEST_DB = -80.0, 60.0

_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("seen", pa.bool_(), nullable=False),
        pa.field("pcm", pa.list_(pa.field("item", pa.int16(), nullable=False)), nullable=False),
    ]
)


@dataclass(frozen=True)
class Recordings:
    """Which recordings make up a bank, and how: what two noise types have in common that read the same one.

    Attributes:
        folder: the noise set.
        layout: how it lies there, a name in ``rkd.data.banks.LAYOUTS``.
        split, holdout: see `split_noise`.
        classes, without: see `find_noise`.
        max_minutes: of each split; more is left out. A bank is held on the device, 1.9 MB a minute.
    """

    folder: str
    layout: str = "folder"
    split: str = "file"
    holdout: float | tuple[str, ...] = 0.25
    classes: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    max_minutes: float = 120.0

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Recordings:
        """Return what a noise type's configuration asks for."""
        given: dict[str, Any] = {field.name: node[field.name] for field in fields(cls) if field.name in node}
        given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
        return cls(**given)

    def files(self) -> list[Path]:
        """Return the files that the bank depends on.

        Raises:
            ConfigError, DataError: see `find_noise` and `split_noise`: what is wrong is found before anything is read.
        """
        clips = find_noise(self.folder, self.layout, self.classes, self.without)
        split_noise(clips, self.split, self.holdout)
        return noise_files(self.folder, self.layout, clips)

    def inputs(self) -> dict[str, Any]:
        """Return what changes the bank besides the files."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


@dataclass(frozen=True)
class NoiseClip:
    """A recording of noise without its silent stretches.

    Attributes:
        name: path below the noise folder.
        label: its class.
        seen: whether the class has recordings in the training split.
        pcm: int16 ``(T,)`` at 16 kHz, at least 0.5 s.
    """

    name: str
    label: str
    seen: bool
    pcm: np.ndarray


def prepare_noise(recordings: Recordings, out: str | Path) -> dict[str, Any]:
    """Write a noise bank: ``noise.arrow``, ``rejected.jsonl`` and ``summary.json``.

    Silent stretches are removed (see `trim_silence`); what is then shorter than 0.5 s is rejected. Clips are read one
    of each class in turn, in the order of hashes, until a split has its ``max_minutes``: the rest is not even read.

    Args:
        recordings: which, and how.
        out: an existing folder for the bank.

    Returns:
        The summary: ``splits``: name -> ``clips``, ``hours``, ``labels``, ``left_out`` (clips beyond ``max_minutes``);
        ``unseen``: classes that are not in the training split; ``rejected``: kind of reason -> count.

    Raises:
        ConfigError, DataError: see `find_noise` and `split_noise`; also if a split is left empty.
    """
    folder, out = Path(recordings.folder), Path(out)
    clips = find_noise(folder, recordings.layout, recordings.classes, recordings.without)
    split_of = split_noise(clips, recordings.split, recordings.holdout)
    limit = round(recordings.max_minutes * 60 * audio.RATE_HZ)
    rejected: list[Rejected] = []
    splits: dict[str, dict[str, Any]] = {}
    labels: dict[str, set[str]] = {split: set() for split in SPLITS}
    with ArrowWriter(out / "noise.arrow", _SCHEMA) as writer:
        for split in SPLITS:
            names = in_turn({name: clips[name].label for name in clips if split_of[name] == split})
            n_samples = n_clips = n_read = 0
            for name in track(names, f"reading {split} noise"):
                if limit - n_samples < MIN_NOISE_SECONDS * audio.RATE_HZ:
                    break
                n_read += 1
                try:
                    x_T = trim_silence(audio.resample(*audio.decode(folder / name)))
                except DataError as error:
                    rejected.append(Rejected(name, str(error).removeprefix(f"{folder / name}: ")))
                    continue
                seconds = len(x_T) / audio.RATE_HZ
                if seconds < MIN_NOISE_SECONDS:
                    rejected.append(Rejected(name, f"too short without its silence: {seconds:.2f} s"))
                    continue
                label = clips[name].label
                labels[split].add(label)
                seen = label in labels["train"]
                pcm_T = audio.to_pcm16(x_T[: limit - n_samples])
                writer.add_row(name=name, label=label, split=split, seen=seen, pcm=pcm_T)
                n_samples += len(pcm_T)
                n_clips += 1
            splits[split] = {
                "clips": n_clips,
                "hours": n_samples / audio.RATE_HZ / 3600,
                "labels": sorted(labels[split]),
                "left_out": len(names) - n_read,
            }
    unseen = sorted((labels["validation"] | labels["test"]) - labels["train"])
    summary = {"splits": splits, "unseen": unseen, "rejected": count_rejected(rejected)}
    write_reports(out, rejected, summary)
    for split in sorted(set(split_of.values())):
        if not splits[split]["clips"]:
            raise DataError(
                f"{folder}: no noise is left for {split}{explain_rejected(count_rejected(rejected))}; add recordings"
            )
    return summary


def load_noise(out: str | Path, split: str, seen: bool | None = None) -> list[NoiseClip]:
    """Return the clips of a split; those of classes that are (not) in the training split if ``seen`` is given.

    The samples are views of the memory-mapped bank.

    Raises:
        DataError: the bank is missing or damaged.
    """
    table = PcmTable(Path(out) / "noise.arrow")
    rows = zip(table.column("name"), table.column("label"), table.column("split"), table.column("seen"), strict=True)
    return [
        NoiseClip(name, label, row_seen, table.pcm(i))
        for i, (name, label, row_split, row_seen) in enumerate(rows)
        if row_split == split and seen in (None, row_seen)
    ]


def trim_silence(x_T: np.ndarray) -> np.ndarray:
    """Remove the silent 20 ms frames of a 16 kHz waveform, so that any stretch of the rest can be mixed at an SNR.

    A frame is silent below -80 dB re full scale, or 60 dB below the loudest frame. What is left is joined with a
    5 ms equal-power cross-fade. If nothing is silent, the waveform comes back as it is.
    """
    n_frames = len(x_T) // _FRAME
    frames_FT = x_T[: n_frames * _FRAME].reshape(n_frames, _FRAME).astype(np.float64)
    power_F = np.mean(frames_FT**2, axis=1)
    floor = max(10 ** (_SILENT_DB / 10), power_F.max(initial=0) * 10 ** (-_SILENT_BELOW_LOUDEST_DB / 10))
    loud_F = power_F > floor
    if loud_F.all():
        return x_T
    # First and one past the last frame of each stretch that is not silent.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], loud_F, [False]]).astype(np.int8))).reshape(-1, 2)
    fade_in = np.sqrt((np.arange(_FADE) + 0.5) / _FADE).astype(np.float32)
    pieces = [np.zeros(0, dtype=np.float32)]
    for first, end in edges * _FRAME:
        piece = x_T[first:end].astype(np.float32)
        if len(pieces) > 1:
            piece[:_FADE] = pieces[-1][-_FADE:] * fade_in[::-1] + piece[:_FADE] * fade_in
            pieces[-1] = pieces[-1][:-_FADE]
        pieces.append(piece)
    return np.concatenate(pieces)
