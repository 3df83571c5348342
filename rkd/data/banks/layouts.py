"""How published noise sets and room sets lie on disk: which class, recording and published split a file belongs to.

To add a layout, write a function from a file's path to a `Clip` and name it in `LAYOUTS` and in the schema.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from rkd.data.sources import audio_files
from rkd.errors import ConfigError, DataError

# A line of the table that some sets have of their files.
Row = Mapping[str, str]

# {part}/{origin}/{part}-{origin}-{number}; elsewhere SLR28 has files of the same names.
_MUSAN = re.compile(r"(?:^|/)(noise|music|speech)/[^/]+/(\1-.+-\d{4})\.\w+$")
_DEMAND = re.compile(r"([A-Z]+)/ch(\d\d)\.\w+$")
# {fold}-{recording}-{take}-{class}: several clips are cut out of one recording.
_ESC50 = re.compile(r"([1-5])-(\d+)-[A-Z]-\d+")
_URBANSOUND8K = re.compile(r"(\d+)-\d+-\d+-\d+")
_WHAM_SPLITS = {"tr": "train", "cv": "validation", "tt": "test"}
_SLR28_REAL = re.compile(r"(RVB2014|RWCP|air)_type\d_(rir|noise|air)_(.+)")
_SLR28_SIMULATED = re.compile(r"((?:\w+room/)?Room\d+)/Room\d+-\d+$")
_SLR28_POINTSOURCE = "pointsource_noises"


@dataclass(frozen=True)
class Clip:
    """Where a file of noise belongs.

    Attributes:
        label: its class.
        recording: what it was cut from: clips of one recording never stand in two splits.
        official: the split in which the set was published; None where it has no published split.
    """

    label: str
    recording: str
    official: str | None = None


@dataclass(frozen=True)
class Layout:
    """A way in which noise lies in a folder.

    Attributes:
        expects: what lies there, for people.
        place: ``place(name, row)`` returns the clip at a path below the folder, None for what is not noise or is not
            used; ``row`` is the file's line in the set's table, if there is one.
        missing: ``missing(names, clips)`` returns what a complete folder would hold besides.
        table: name pattern of the tables, their column with the file names, and the other columns that are read.
        classes: those that are used unless others are named; None for all.
    """

    expects: str
    place: Callable[[str, Row | None], Clip | None]
    missing: Callable[[Collection[str], Mapping[str, Clip]], list[str]] = lambda names, clips: []
    table: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None


def find_noise(
    folder: str | Path, layout: str = "folder", classes: Sequence[str] | None = None, without: Sequence[str] = ()
) -> dict[str, Clip]:
    """Return the clips of a noise folder by their paths below it.

    Args:
        folder: the noise set.
        layout: a name in ``LAYOUTS``.
        classes: take only these; None for those that the layout takes by itself.
        without: leave these out.

    Raises:
        ConfigError: a class that the set does not have.
        DataError: the folder is missing, does not have the layout, or lacks a part of it.
    """
    folder, kind = Path(folder), LAYOUTS[layout]
    files = audio_files(folder, f"noise recordings ({kind.expects})", "noise.folder")
    names = [path.relative_to(folder).as_posix() for path in files]
    rows = _read_tables(folder, kind)
    placed = {name: kind.place(name, rows.get(PurePosixPath(name).name)) for name in names}
    clips = {name: clip for name, clip in placed.items() if clip is not None}
    if not clips:
        found = _some([path.name + "/" * path.is_dir() for path in sorted(folder.iterdir())], most=4)
        raise DataError(f"{folder} does not look like {layout}: that is {kind.expects}; this folder has {found}")
    missing = kind.missing(names, clips)
    there = {PurePosixPath(name).name for name in names}
    if lost := [name for name in rows if name not in there]:
        missing.append(f"{len(lost)} of the {len(rows)} files in its table, such as {lost[0]}")
    if missing:
        raise DataError(f"{folder} is not all of {layout}, which is {kind.expects}; missing: {', '.join(missing)}")
    return _choose(clips, folder, classes or kind.classes, without)


def noise_files(folder: str | Path, layout: str, clips: Collection[str]) -> list[Path]:
    """Return the files on which a bank of some clips depends: the recordings, and the set's tables."""
    return [*_tables(Path(folder), LAYOUTS[layout]), *(Path(folder) / name for name in clips)]


def room_of(name: str) -> tuple[str, bool] | None:
    """Return the room of a response by its path without suffix, and whether it was simulated; None for no response.

    SLR28 has folders of simulated rooms (``smallroom/Room001/...``) and measured ones that only the file names tell
    apart, with noise recordings among them. Elsewhere a top-level subfolder is a room, and so is a file beside it.
    """
    if simulated := _SLR28_SIMULATED.search(name):
        return simulated[1], True
    path = PurePosixPath(name)
    if measured := _SLR28_REAL.fullmatch(path.name):
        return None if measured[2] == "noise" else (_slr28_room(path.name), False)
    return None if _SLR28_POINTSOURCE in path.parts else (path.parts[0], False)


def _read_tables(folder: Path, kind: Layout) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for path in _tables(folder, kind):
        assert kind.table is not None
        _, name, *others = kind.table
        with open(path, newline="", encoding="utf-8-sig") as file:
            try:
                for row in csv.DictReader(file):
                    if None in (row[name], *(row[column] for column in others)):
                        raise KeyError(name)  # a line that ends early
                    rows[row[name]] = row
            except (KeyError, UnicodeDecodeError, csv.Error) as error:
                columns = ", ".join((name, *others))
                raise DataError(f"{path} cannot be read as a table with the columns {columns}") from error
    return rows


def _tables(folder: Path, kind: Layout) -> list[Path]:
    return sorted(folder.rglob(kind.table[0])) if kind.table else []


def _choose(
    clips: dict[str, Clip], folder: Path, classes: Sequence[str] | None, without: Sequence[str]
) -> dict[str, Clip]:
    labels = sorted({clip.label for clip in clips.values()})
    for key, named in (("classes", classes or ()), ("without", without)):
        if unknown := [label for label in named if label not in labels]:
            raise ConfigError(f"noise.{key}: {folder} has no class {_some(unknown)}; it has {_some(labels)}")
    chosen = {
        name: clip
        for name, clip in clips.items()
        if (classes is None or clip.label in classes) and clip.label not in without
    }
    if not chosen:
        raise ConfigError(f"noise.without leaves no class of {folder}; it has {_some(labels)}")
    return chosen


def _some(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _lacking(parts: Mapping[str, str], names: Collection[str], clips: Mapping[str, Clip]) -> list[str]:
    """Return the parts, given as name -> pattern, of which there is no clip."""
    return [part for part, pattern in parts.items() if not any(re.search(pattern, name) for name in clips)]


# ---- the layouts ----


def _folder(name: str, row: Row | None) -> Clip:
    path = PurePosixPath(name)
    label = path.parts[0] if len(path.parts) > 1 else path.stem
    esc50 = _ESC50.fullmatch(path.stem)
    return Clip(label, esc50[2] if esc50 else name)


def _musan(name: str, row: Row | None) -> Clip | None:
    found = _MUSAN.search(name)
    return Clip(found[1], found[2]) if found else None


def _demand(name: str, row: Row | None) -> Clip | None:
    # The 16 channels of an array heard the same noise.
    found = _DEMAND.search(name)
    return Clip(found[1], found[1]) if found and found[2] == "01" else None


def _demand_missing(names: Collection[str], clips: Mapping[str, Clip]) -> list[str]:
    environments = {found[1] for name in names if (found := _DEMAND.search(name))}
    return [f"{e}/ch01.wav" for e in sorted(environments - {clip.label for clip in clips.values()})]


def _esc50(name: str, row: Row | None) -> Clip | None:
    path = PurePosixPath(name)
    found = _ESC50.fullmatch(path.stem)
    label = row["category"] if row else path.parent.name
    if not found or label in ("", "audio"):
        return None
    return Clip(label, found[2], {"4": "validation", "5": "test"}.get(found[1], "train"))


def _urbansound8k(name: str, row: Row | None) -> Clip | None:
    path = PurePosixPath(name)
    found = _URBANSOUND8K.fullmatch(path.stem)
    if not found or not row:
        return None
    return Clip(row["class"], found[1], {"9": "validation", "10": "test"}.get(row["fold"], "train"))


def _wham(name: str, row: Row | None) -> Clip | None:
    split = _WHAM_SPLITS.get(PurePosixPath(name).parent.name)
    return Clip(row["Location ID"], row["File ID"], split) if split and row else None


def _slr28(name: str, row: Row | None) -> Clip | None:
    path = PurePosixPath(name)
    if _SLR28_POINTSOURCE in path.parts:
        return Clip("pointsource", path.stem)
    found = _SLR28_REAL.fullmatch(path.stem)
    return Clip("isotropic", _slr28_room(path.stem)) if found and found[2] == "noise" else None


def _slr28_room(stem: str) -> str:
    """Return the room of a measured response or an isotropic noise of SLR28, such as ``RVB2014 largeroom1``."""
    found = _SLR28_REAL.fullmatch(stem)
    assert found is not None
    origin, rest = found[1], found[3]
    if origin == "RVB2014":  # largeroom1_far_angla
        room = rest.split("_")[0]
    elif origin == "RWCP":  # circle_e1a_imp000; the responses of type 4, such as p30l, do not tell
        room = match[1] if (match := re.match(r"cir\w*?_([a-z]\w*?)_", rest)) else "unknown"
    else:  # binaural_lecture_0_1, phone_bt_office_hhp
        room = re.sub(r"^(binaural|phone)_(bt_)?", "", rest).split("_")[0]
    return f"{origin} {room}"


LAYOUTS = {
    "folder": Layout("a class a subfolder", _folder),
    "musan": Layout("MUSAN with noise/free-sound/noise-free-sound-0000.wav and so on", _musan, classes=("noise",)),
    "demand": Layout("DEMAND with a folder an environment: DKITCHEN/ch01.wav to ch16.wav", _demand, _demand_missing),
    "esc50": Layout(
        "ESC-50 with audio/1-100032-A-0.wav and meta/esc50.csv, or its files in a folder a class",
        _esc50,
        table=("esc50.csv", "filename", "category"),
    ),
    "urbansound8k": Layout(
        "UrbanSound8K with audio/fold1 to fold10 and metadata/UrbanSound8K.csv",
        _urbansound8k,
        partial(_lacking, {f"fold{n}": rf"(^|/)fold{n}/" for n in range(1, 11)}),
        table=("UrbanSound8K.csv", "slice_file_name", "fold", "class"),
    ),
    "wham": Layout(
        "WHAM with tr/, cv/, tt/ and metadata/noise_meta_tr.csv, _cv.csv, _tt.csv",
        _wham,
        partial(_lacking, {f"{part} or its table": rf"(^|/){part}/" for part in _WHAM_SPLITS}),
        table=("noise_meta_*.csv", "utterance_id", "File ID", "Location ID"),
    ),
    "slr28": Layout(
        "RIRS_NOISES with pointsource_noises/ and real_rirs_isotropic_noises/",
        _slr28,
        partial(_lacking, {f"{_SLR28_POINTSOURCE}/": _SLR28_POINTSOURCE, "isotropic noises": r"_type\d_noise_"}),
    ),
}
