"""The model families, and model folders on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rkd.errors import CheckpointError


def save_model(model: Any, family: str, folder: Path) -> None:
    """Write a model folder: the family's own files, and ``rkd.json`` with the family's name and the shape."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    card = {"family": family, "window_seconds": model.window_seconds, "shape": model.shape}
    (folder / "rkd.json").write_text(json.dumps(card, indent=2) + "\n")


def load_model(folder: Path, families: dict[str, Any]) -> Any:
    """Load a model folder, or the ``model`` folder of a run.

    Args:
        folder: what ``save_model`` wrote, or a run folder that holds it.
        families: classes by family name. A folder names its family, never a class: what is on disk is not executed.

    Raises:
        CheckpointError: the folder is not a model, or of a family that is not known.
    """
    folder = model_folder(folder)
    try:
        card = json.loads((folder / "rkd.json").read_text())
        family = card["family"]
        if family not in families:
            raise CheckpointError(
                f"{folder / 'rkd.json'} names the family {family}; known are {', '.join(families)}: for a family of "
                "your own, choose its configuration for student or teacher, too"
            )
        return families[family].load(folder, card)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is not a model folder (no {Path(error.filename or '').name}); name a finished run or its model "
            "folder"
        ) from error
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder} is damaged ({error!r}); rebuild it or name another folder") from error


def model_folder(folder: Path) -> Path:
    """Return the model folder of a run, or the folder itself."""
    return folder / "model" if (folder / "model" / "rkd.json").exists() else folder
