"""Model folders on disk, read without loading what is in them."""

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

# The family of a recogniser that wears a denoiser. Its card holds the recogniser's own.
ENHANCED = "enhanced"
RECOGNISER = "recogniser"  # the folder that its recogniser lies in


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
