"""The model families, and model folders on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rkd.errors import CheckpointError
from rkd.models.denoisers import load_denoiser
from rkd.models.folders import ENHANCED, RECOGNISER, model_folder, read_card, recogniser_folder

__all__ = ["load_model", "model_folder", "read_card", "recogniser_folder", "save_model"]


def save_model(model: Any, family: str, folder: Path) -> None:
    """Write a model folder: the family's own files, and ``rkd.json`` with the family's name and the shape.

    Args:
        family: of the recogniser, whatever it wears.
    """
    from rkd.models.enhanced import Enhanced

    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    card = {"family": family, "window_seconds": model.window_seconds, "shape": model.shape}
    if isinstance(model, Enhanced):
        card = {"family": ENHANCED, "mixing": model.mixing.kind, "recogniser": card}
    (folder / "rkd.json").write_text(json.dumps(card, indent=2) + "\n")


def load_model(folder: Path, families: Mapping[str, Any], denoisers: Mapping[str, Any] | None = None) -> Any:
    """Load a model folder, or the ``model`` folder of a run.

    Args:
        folder: what ``save_model`` wrote, a run folder that holds it, or a recogniser in Transformers' form.
        families: classes by family name. A folder names its family, never a class: what is on disk is not executed.
        denoisers: the same of denoisers.

    Raises:
        CheckpointError: the folder is not a model, or of a family that is not known.
    """
    folder = model_folder(folder)
    card = read_card(folder)
    return _load(folder, card, families, denoisers or {})


def _load(folder: Path, card: dict[str, Any], families: Mapping[str, Any], denoisers: Mapping[str, Any]) -> Any:
    try:
        family = card["family"]
        if family == ENHANCED:
            from rkd.models.enhanced import Enhanced

            recogniser = _load(folder / RECOGNISER, card["recogniser"], families, denoisers)
            denoiser = load_denoiser(folder / "denoiser", denoisers)
            return Enhanced.of_parts(folder, recogniser, denoiser, card["mixing"])
        if family not in families:
            raise CheckpointError(
                f"{folder / 'rkd.json'} names the family {family}; known are {', '.join(families)}: for a family of "
                "your own, choose its configuration for student or teacher, too"
            )
        return families[family].load(folder, card)
    except (KeyError, ValueError, TypeError, OSError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{folder} is damaged ({what}); rebuild it or name another folder") from error
