"""prepare: corpus, noise recordings and rooms to stores on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.console import say, warn
from rkd.processes import usable_cores

if TYPE_CHECKING:
    from rkd.data.banks import Recordings


def build_speech(data: dict[str, Any], source: Any, total: int | None, workers: int | None, folder: Path) -> None:
    """Write the corpus as 16 kHz PCM; ``workers=None`` takes every core that this process may use."""
    from rkd.config.schema import PERTURBATIONS
    from rkd.data.corpus import write_store

    workers = workers or usable_cores()
    keys = ("min_seconds", "max_seconds", "normaliser", "max_utterances", *PERTURBATIONS)
    summary = write_store(source, folder, **{key: data[key] for key in keys}, workers=workers, total=total)
    for split, part in summary["splits"].items():
        say(
            f"  {split:10s} {part['utterances']} utterances, {part['hours']:.2f} h, "
            f"{part['words']} words, {part['speakers']} speakers"
        )
    if made := summary["perturbed"]:
        by_change = ", ".join(f"{name}: {n}" for name, n in made.items())
        say(f"  of those that are trained on, {sum(made.values())} are at another speed, tempo or pitch ({by_change})")
    if not summary["has_text"]:
        say("  no utterance has text: a training needs a teacher that transcribes the corpus")
    report_rejected(summary, folder)


def build_noise(recordings: Recordings, folder: Path) -> None:
    """Write a folder of noise recordings as 16 kHz PCM, split."""
    from rkd.data.banks import prepare_noise

    summary = prepare_noise(recordings, folder)
    for split, part in summary["splits"].items():
        left_out = f"; {part['left_out']} beyond noise.max_minutes" if part["left_out"] else ""
        minutes, n_classes = 60 * part["hours"], len(part["labels"])
        say(f"  {split:10s} {part['clips']} clips, {minutes:.1f} min, {n_classes} classes{left_out}")
    report_rejected(summary, folder)


def build_rooms(path: str, max_responses: int, folder: Path) -> None:
    """Write recorded room responses that begin at the direct path, split."""
    from rkd.data.banks import prepare_rooms

    report_rooms(prepare_rooms(path, folder, max_responses), folder)


def build_simulated_rooms(settings: dict[str, Any], folder: Path) -> None:
    """Write simulated room responses that begin at the direct path, split."""
    from rkd.data.banks import prepare_simulated_rooms

    report_rooms(prepare_simulated_rooms(settings, folder), folder)


def report_rooms(summary: dict[str, Any], folder: Path) -> None:
    """Say how many rooms each split has."""
    for split, part in summary["splits"].items():
        left_out = f"; {part['left_out']} beyond noise.max_responses" if part.get("left_out") else ""
        say(f"  {split:10s} {part['responses']} responses of {part['rooms']} rooms{left_out}")
    report_rejected(summary, folder)


def report_rejected(summary: dict[str, Any], folder: Path) -> None:
    """Say what could not be read, and where the reasons are."""
    if summary["rejected"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary["rejected"].items())
        warn(f"rejected: {reasons}; see {folder / 'rejected.jsonl'}")
