"""prepare: corpus, noise recordings and rooms to stores on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rkd.console import say, warn


def build_speech(data: dict[str, Any], source: Any, workers: int | None, folder: Path) -> None:
    """Write the corpus as 16 kHz PCM; ``workers=None`` takes every core that this process may use."""
    from rkd.data.corpus import write_store

    workers = workers or len(os.sched_getaffinity(0))
    summary = write_store(source, folder, data["min_seconds"], data["max_seconds"], data["normaliser"], workers)
    for split, part in summary["splits"].items():
        say(
            f"  {split:10s} {part['utterances']} utterances, {part['hours']:.2f} h, "
            f"{part['words']} words, {part['speakers']} speakers"
        )
    report_rejected(summary, folder)


def build_noise(key: tuple, folder: Path) -> None:
    """Write a folder of noise recordings as 16 kHz PCM, split."""
    from rkd.data.banks import prepare_noise

    path, split, holdout = key
    report_rejected(prepare_noise(path, folder, split, holdout), folder)


def build_rooms(path: str, folder: Path) -> None:
    """Write room responses that begin at the direct path, split."""
    from rkd.data.banks import prepare_rooms

    report_rejected(prepare_rooms(path, folder), folder)


def report_rejected(summary: dict[str, Any], folder: Path) -> None:
    """Say what could not be read, and where the reasons are."""
    if summary["rejected"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary["rejected"].items())
        warn(f"rejected: {reasons}; see {folder / 'rejected.jsonl'}")
