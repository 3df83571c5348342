"""The model families, and model folders on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from rkd.errors import CheckpointError


def save_model(model: Any, family: str, folder: Path) -> None:
    """Write a model folder: the family's own files, and ``rkd.json`` with the family's name and the shape."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    card = {"family": family, "window_seconds": model.window_seconds, "shape": model.shape}
    (folder / "rkd.json").write_text(json.dumps(card, indent=2) + "\n")


def load_model(folder: Path, families: dict[str, Any]) -> nn.Module:
    """Load a model folder, or the ``model`` folder of a run.

    Args:
        folder: what ``save_model`` wrote, or a run folder that holds it.
        families: classes by family name. A folder names its family, never a class: what is on disk is not executed.

    Raises:
        CheckpointError: the folder is not a model, or of a family that is not known.
    """
    from transformers import WhisperTokenizer

    folder = folder / "model" if (folder / "model" / "rkd.json").exists() else folder
    try:
        card = json.loads((folder / "rkd.json").read_text())
        family = families[card["family"]]
        tokenizer = WhisperTokenizer.from_pretrained(folder)
        model = family(tokenizer=tokenizer, window_seconds=card["window_seconds"], **card["shape"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is not a model folder (no rkd.json); name a finished run or its model folder"
        ) from error
    except KeyError as error:
        raise CheckpointError(
            f"{folder / 'rkd.json'} lacks or does not know {error}; known families: {', '.join(families)}"
        ) from error
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}); rebuild it or name another folder") from error
    model.load_weights(folder)
    return model
