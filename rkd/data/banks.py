"""Banks of recorded noise and of room impulse responses: trimmed, aligned, split, and written to one Arrow file each.

Training, validation and test never share a recording or a room. Shapes: T samples at 16 kHz, F frames of 20 ms.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rkd import audio
from rkd.data.corpus import count_rejected, explain_rejected, write_reports
from rkd.data.sources import Rejected, audio_files
from rkd.data.store import SPLITS, ArrowWriter, PcmTable
from rkd.draws import unit_hash
from rkd.errors import ConfigError, DataError

MIN_NOISE_SECONDS = 0.5
_FRAME = audio.RATE_HZ // 50
_FADE = audio.RATE_HZ // 200
_SILENT_DB, _SILENT_BELOW_LOUDEST_DB = -80.0, 60.0
_DECAY_DB = 60.0

# A noise folder, how it is split, and the classes kept for the test.
BankKey = tuple[str, str, float | tuple[str, ...]]

_NOISE_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("seen", pa.bool_(), nullable=False),
        pa.field("pcm", pa.list_(pa.field("item", pa.int16(), nullable=False)), nullable=False),
    ]
)
_ROOM_SCHEMA = pa.schema([("name", pa.string()), ("split", pa.string()), ("response", pa.list_(pa.float32()))])
# ESC-50 cuts several clips out of one recording: {fold}-{recording}-{take}-{class}.
_ESC50_NAME = re.compile(r"\d-(\d+)-[A-Z]-\d+")


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


@dataclass(frozen=True)
class Room:
    """A room impulse response: float32 ``(T,)`` at 16 kHz, whose first sample is the direct path and is 1.0."""

    name: str
    response: np.ndarray


def bank_key(folder: str | Path, split: str, holdout: Any) -> BankKey:
    """Return what two noise types must have in common to share a prepared bank."""
    return str(folder), split, tuple(holdout) if isinstance(holdout, list) else holdout


def rank_split(keys: Iterable[str]) -> dict[str, str]:
    """Split keys by the order of their hashes: 10% validation, 20% test, the rest training.

    Of three or more keys every split gets at least one, of fewer the training split gets all.
    """
    ranked = sorted(set(keys), key=lambda key: (unit_hash(f"bank:{key}"), key))
    if len(ranked) < 3:
        return dict.fromkeys(ranked, "train")
    n_test, n_validation = max(1, round(0.2 * len(ranked))), max(1, round(0.1 * len(ranked)))
    splits = ["test"] * n_test + ["validation"] * n_validation
    return dict(zip(ranked, splits + ["train"] * (len(ranked) - len(splits)), strict=True))


def split_noise(
    labels: Mapping[str, str], split: str = "file", holdout: float | Sequence[str] = 0.25
) -> dict[str, tuple[str, bool]]:
    """Decide where each noise file goes.

    Files are split within their class, so that a new class does not move the others; classes of one or two recordings
    are split together. Clips that ESC-50 cut out of one recording stay together.

    Args:
        labels: file name -> class.
        split: ``file``: every class may be in every split; ``class``: some classes are kept for the test alone.
        holdout: with ``split=class`` the share of the classes to keep, or their names; 1 keeps the whole folder for
            the test, as an evaluation's own noise.

    Returns:
        File name -> (split, whether its class is in the training split).

    Raises:
        ConfigError: an unknown ``split``, or a ``holdout`` that is no class, or leaves none or takes none.
        DataError: fewer than three recordings to split.
    """
    if split not in ("file", "class"):
        raise ConfigError(f"noise.split={split}: choose one of file, class")
    if split == "class" and holdout == 1:
        return dict.fromkeys(labels, ("test", False))
    held_out = _held_out(sorted(set(labels.values())), holdout) if split == "class" else set()
    recordings: dict[str, set[str]] = defaultdict(set)  # of each class
    for name, label in labels.items():
        if label not in held_out:
            recordings[label].add(_recording(name))
    if sum(map(len, recordings.values())) < 3:
        raise DataError(
            "the noise folder needs at least 3 recordings, so that training, validation and test share none"
        )
    groups = [keys for keys in recordings.values() if len(keys) >= 3]
    groups.append({key for keys in recordings.values() if len(keys) < 3 for key in keys})
    split_of = {key: where for keys in groups for key, where in rank_split(keys).items()}
    where = {name: "test" if label in held_out else split_of[_recording(name)] for name, label in labels.items()}
    trained = {labels[name] for name, chosen in where.items() if chosen == "train"}
    return {name: (where[name], label in trained) for name, label in labels.items()}


def prepare_noise(
    folder: str | Path, out: str | Path, split: str = "file", holdout: float | Sequence[str] = 0.25
) -> dict[str, Any]:
    """Write a noise bank: ``noise.arrow``, ``rejected.jsonl`` and ``summary.json``.

    The class of a file is its top-level subfolder; a file directly in the folder is a class of its own, named after it.
    Silent stretches are removed (see `trim_silence`); what is then shorter than 0.5 s is rejected.

    Args:
        folder: the recordings.
        out: an existing folder for the bank.
        split, holdout: see `split_noise`.

    Returns:
        The summary: ``splits``: name -> ``clips``, ``hours``, ``labels``; ``unseen``: classes in the test that are not
        in the training split; ``rejected``: kind of reason -> count.

    Raises:
        ConfigError, DataError: see `split_noise`; also if there is no audio or a split is left empty.
    """
    folder, out = Path(folder), Path(out)
    paths = {
        path.relative_to(folder).as_posix(): path for path in audio_files(folder, "noise recordings", "noise.folder")
    }
    labels = {name: name.split("/")[0] if "/" in name else path.stem for name, path in paths.items()}
    chosen = split_noise(labels, split, holdout)
    rejected = []
    n_samples: dict[str, list[int]] = {s: [] for s in SPLITS}
    kept_labels: dict[str, set[str]] = {s: set() for s in SPLITS}
    unseen = set()
    with ArrowWriter(out / "noise.arrow", _NOISE_SCHEMA) as writer:
        for name, path in paths.items():
            try:
                x_T = trim_silence(audio.resample(*audio.decode(path)))
            except DataError as error:
                rejected.append(Rejected(name, str(error).removeprefix(f"{path}: ")))
                continue
            seconds = len(x_T) / audio.RATE_HZ
            if seconds < MIN_NOISE_SECONDS:
                rejected.append(Rejected(name, f"too short without its silence: {seconds:.2f} s"))
                continue
            where, seen = chosen[name]
            writer.add_row(name=name, label=labels[name], split=where, seen=seen, pcm=audio.to_pcm16(x_T))
            n_samples[where].append(len(x_T))
            kept_labels[where].add(labels[name])
            if not seen:
                unseen.add(labels[name])
    summary = {
        "splits": {
            s: {
                "clips": len(n_samples[s]),
                "hours": sum(n_samples[s]) / audio.RATE_HZ / 3600,
                "labels": sorted(kept_labels[s]),
            }
            for s in SPLITS
        },
        "unseen": sorted(unseen),
        "rejected": count_rejected(rejected),
    }
    write_reports(out, rejected, summary)
    for s in sorted({where for where, _ in chosen.values()}):
        if not n_samples[s]:
            raise DataError(
                f"{folder}: no noise is left for {s}{explain_rejected(count_rejected(rejected))}; add recordings"
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


def prepare_rooms(folder: str | Path, out: str | Path) -> dict[str, Any]:
    """Write a bank of room impulse responses: ``rooms.arrow``, ``rejected.jsonl`` and ``summary.json``.

    Of each file the first channel is used. It starts at the direct path, taken to be the largest absolute sample, which
    is scaled to 1.0, and ends where the energy still to come is 60 dB below the whole (Schroeder, 1965). Rooms are
    split by the order of their hashes.

    Args:
        folder: one file a room, or several of one room in a subfolder of it: a top-level subfolder is one room.
        out: an existing folder for the bank.

    Returns:
        The summary: ``splits``: name -> list of responses; ``rejected``: kind of reason -> count.

    Raises:
        DataError: there are fewer than three usable rooms.
    """
    folder, out = Path(folder), Path(out)
    responses: dict[str, np.ndarray] = {}
    rejected = []
    for path in audio_files(folder, "room impulse responses", "noise.rooms"):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            x_T = audio.resample(*audio.decode(path, channel=0))
        except DataError as error:
            rejected.append(Rejected(name, str(error).removeprefix(f"{path}: ")))
            continue
        if name in responses:
            rejected.append(Rejected(name, f"another file has this name: {path.name}"))
        elif not x_T.any():
            rejected.append(Rejected(name, "silent"))
        else:
            responses[name] = align_room(x_T)
    rooms = {name: name.split("/")[0] for name in responses}
    if (n_rooms := len(set(rooms.values()))) < 3:
        raise DataError(
            f"{folder}: {n_rooms} usable rooms{explain_rejected(count_rejected(rejected))}; at least 3 are needed, "
            "so that training, validation and test share none: add some, or use noise without rooms"
        )
    split_of = rank_split(rooms.values())
    columns = [list(responses), [split_of[rooms[name]] for name in responses], list(responses.values())]
    table = pa.table(
        [pa.array(c, type=f.type) for c, f in zip(columns, _ROOM_SCHEMA, strict=True)], schema=_ROOM_SCHEMA
    )
    temporary = out / "rooms.arrow.tmp"
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, _ROOM_SCHEMA) as writer:
        writer.write_table(table)
    os.replace(temporary, out / "rooms.arrow")
    summary = {
        "splits": {s: [name for name in responses if split_of[rooms[name]] == s] for s in SPLITS},
        "rejected": count_rejected(rejected),
    }
    write_reports(out, rejected, summary)
    return summary


def load_rooms(out: str | Path, split: str) -> list[Room]:
    """Return the rooms of a split.

    Raises:
        DataError: the bank is missing or damaged.
    """
    path = Path(out) / "rooms.arrow"
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is missing or damaged ({error}); remove its folder and prepare it again") from error
    rows = zip(table.column("name"), table.column("split"), table.column("response"), strict=True)
    return [
        Room(name.as_py(), response.values.to_numpy(zero_copy_only=False))
        for name, where, response in rows
        if where.as_py() == split
    ]


def align_room(x_T: np.ndarray) -> np.ndarray:
    """Return a response from its direct path on, scaled so that this is 1.0, without what is 60 dB down; float32."""
    direct = int(np.argmax(np.abs(x_T)))
    response_T = x_T[direct:].astype(np.float64) / x_T[direct]
    remaining_T = np.cumsum(response_T[::-1] ** 2)[::-1]  # Schroeder's backward integration
    end = int(np.count_nonzero(remaining_T > remaining_T[0] * 10 ** (-_DECAY_DB / 10)))
    return response_T[:end].astype(np.float32)


def _recording(name: str) -> str:
    """Return what must not be in two splits: the file, or for ESC-50 the recording that it was cut from."""
    path = Path(name)
    match = _ESC50_NAME.fullmatch(path.stem)
    return (path.parent / match[1]).as_posix() if match else name


def _held_out(labels: Sequence[str], holdout: float | Sequence[str]) -> set[str]:
    if isinstance(holdout, (int, float)):
        if not 0 < holdout < 1:
            raise ConfigError(f"noise.holdout={holdout}: give a share between 0 and 1, or a list of classes")
        ranked = sorted(labels, key=lambda label: (unit_hash(f"class:{label}"), label))
        held_out = set(ranked[: max(1, round(holdout * len(ranked)))])
    else:
        held_out = set(holdout)
        if unknown := sorted(held_out - set(labels)):
            raise ConfigError(f"noise.holdout: there is no class {', '.join(unknown)}; there are {', '.join(labels)}")
        if not held_out:
            raise ConfigError("noise.holdout=[]: name a class to keep for the test, or use noise.split=file")
    if held_out >= set(labels):
        raise ConfigError(
            f"noise.holdout keeps every class ({', '.join(labels)}) for the test; leave some to train with"
        )
    return held_out
