"""The model families, and model folders on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rkd.errors import CheckpointError
from rkd.models.denoisers import load_denoiser

# A folder in Transformers' form is heard as it was pretrained. By its `model_type`: the family, and the shape.
PRETRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "whisper": ("hubwhisper", {"window": "original"}),
    "wav2vec2": ("hubctc", {}),
    "hubert": ("hubctc", {}),
    "wavlm": ("hubctc", {}),
}


# The family of a recogniser that wears a denoiser. Its card holds the recogniser's own.
ENHANCED = "enhanced"
RECOGNISER = "recogniser"  # the folder that its recogniser lies in


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


def read_card(folder: Path) -> dict[str, Any]:
    """Return what ``rkd.json`` says of a model folder, or what it would say of one in Transformers' own form.

    Raises:
        CheckpointError: the folder is neither, or cannot be read.
    """
    try:
        if (folder / "rkd.json").is_file():
            card = json.loads((folder / "rkd.json").read_text())
            told = card if isinstance(card, dict) else {}
            if told.get("family") == ENHANCED:
                told = {"family": ENHANCED, **told.get("recogniser", {})}
            if lost := [key for key in ("family", "window_seconds", "shape") if key not in told]:
                raise CheckpointError(
                    f"{folder / 'rkd.json'} is damaged: it does not tell the {lost[0]}; build the model again, or name "
                    "another folder"
                )
            return card
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is not a model folder (it has neither rkd.json nor config.json); name a finished run, its model "
            "folder, or a recogniser's folder in Transformers' form"
        ) from error
    except (ValueError, AttributeError, OSError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}); copy or build it again") from error
    if kind not in PRETRAINED:
        raise CheckpointError(
            f"{folder / 'config.json'} names model_type {kind}; rkd reads the recognisers {', '.join(PRETRAINED)}"
        )
    family, shape = PRETRAINED[kind]
    return {"family": family, "shape": shape}


def model_folder(folder: Path) -> Path:
    """Return the model folder of a run, or the folder itself."""
    return folder / "model" if (folder / "model" / "rkd.json").exists() else folder


def recogniser_folder(folder: Path) -> Path:
    """Return the folder of the recogniser in a run or a model folder, whatever it wears."""
    folder = model_folder(folder)
    return folder / RECOGNISER if (folder / RECOGNISER).is_dir() else folder
