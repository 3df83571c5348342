"""Who goes where: training, validation and test share no recording and no room, and large sets are cut evenly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from rkd.data.banks.layouts import Clip
from rkd.data.store import SPLITS
from rkd.draws import unit_hash
from rkd.errors import ConfigError, DataError


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
    clips: Mapping[str, Clip], split: str = "file", holdout: float | Sequence[str] = 0.25
) -> dict[str, str]:
    """Decide where each clip of noise goes; clips of one recording go together.

    Recordings are split within their class, so that a new class does not move the others; classes of one or two
    recordings are split together.

    Args:
        clips: file name -> what it is.
        split: ``file``: every class may be in every split; ``class``: some classes are kept for the test alone;
            ``official``: as published.
        holdout: with ``split=class`` the share of the classes to keep, or their names; 1 keeps the whole folder for
            the test, as an evaluation's own noise.

    Returns:
        File name -> split.

    Raises:
        ConfigError: a ``holdout`` that is no class, or leaves none or takes none; ``official`` without such a split.
        DataError: fewer than three recordings to split; a published split of which a part is missing.
    """
    if split == "class" and holdout == 1:
        return dict.fromkeys(clips, "test")
    split_of = _official(clips) if split == "official" else _by_hash(clips, split, holdout)
    return {name: split_of[clip.recording] for name, clip in clips.items()}


def in_turn(labels: Mapping[str, str]) -> list[str]:
    """Return the names one of each label in turn, in the order of hashes: any beginning of it is spread over labels."""
    names_of: dict[str, list[str]] = defaultdict(list)
    for name in sorted(labels, key=lambda name: (unit_hash(f"turn:{name}"), name)):
        names_of[labels[name]].append(name)
    turn = {name: i for names in names_of.values() for i, name in enumerate(names)}
    return sorted(labels, key=lambda name: (turn[name], unit_hash(f"turn of class:{labels[name]}"), name))


def _official(clips: Mapping[str, Clip]) -> dict[str, str]:
    """Return the published split of each recording; one that was published in several is only tested."""
    split_of: dict[str, str] = {}
    for clip in clips.values():
        if clip.official is None:
            raise ConfigError("noise.split=official: this layout has no published split; choose file or class")
        split_of[clip.recording] = max(split_of.get(clip.recording, "train"), clip.official, key=SPLITS.index)
    if lacking := [split for split in SPLITS if split not in split_of.values()]:
        raise DataError(f"noise.split=official: the folder has nothing of the published part for "
                        f"{' and '.join(lacking)}; download the rest, or set noise.split=file")  # fmt: skip
    return split_of


def _by_hash(clips: Mapping[str, Clip], split: str, holdout: float | Sequence[str]) -> dict[str, str]:
    held_out = _held_out(sorted({clip.label for clip in clips.values()}), holdout) if split == "class" else set()
    only_tested = {clip.recording for clip in clips.values() if clip.label in held_out}
    # A recording of several classes is split with the first of them.
    class_of: dict[str, str] = {}
    for clip in clips.values():
        if clip.recording not in only_tested:
            class_of[clip.recording] = min(class_of.get(clip.recording, clip.label), clip.label)
    if len(class_of) < 3:
        raise DataError(
            "the noise folder needs at least 3 recordings, so that training, validation and test share none"
        )
    recordings: dict[str, set[str]] = defaultdict(set)
    for recording, label in class_of.items():
        recordings[label].add(recording)
    groups = [keys for keys in recordings.values() if len(keys) >= 3]
    groups.append({key for keys in recordings.values() if len(keys) < 3 for key in keys})
    split_of = {key: where for keys in groups for key, where in rank_split(keys).items()}
    return split_of | dict.fromkeys(only_tested, "test")


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
