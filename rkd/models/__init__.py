"""The model families, and model folders on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rkd.errors import CheckpointError

# A folder in Transformers' form is heard as it was pretrained. By its `model_type`: the family, and the shape.
PRETRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "whisper": ("hubwhisper", {"window": "original"}),
    "wav2vec2": ("hubctc", {}),
    "hubert": ("hubctc", {}),
    "wavlm": ("hubctc", {}),
}


def save_model(model: Any, family: str, folder: Path) -> None:
    """Write a model folder: the family's own files, and ``rkd.json`` with the family's name and the shape."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    card = {"family": family, "window_seconds": model.window_seconds, "shape": model.shape}
    (folder / "rkd.json").write_text(json.dumps(card, indent=2) + "\n")


def load_model(folder: Path, families: dict[str, Any]) -> Any:
    """Load a model folder, or the ``model`` folder of a run.

    Args:
        folder: what ``save_model`` wrote, a run folder that holds it, or a recogniser in Transformers' form.
        families: classes by family name. A folder names its family, never a class: what is on disk is not executed.

    Raises:
        CheckpointError: the folder is not a model, or of a family that is not known.
    """
    folder = model_folder(folder)
    try:
        card = read_card(folder)
        family = card["family"]
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
