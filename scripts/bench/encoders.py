"""Folders in the form of pretrained HuBERT models with a CTC head, for `step.py`: real shapes, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Layers of HuBERT base (Hsu et al. 2021), and of the students of it that have two (DistilHuBERT, Chang et al. 2022;
# RobustDistiller, Guimarães et al. 2023).
ENCODERS = {"encoder-23M": 2, "encoder-95M": 12}
LETTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "|"]


def write_encoder(folder: Path, shape: str, **config: Any) -> None:
    """Write a folder that ``rkd distill student.source=`` and Transformers read.

    Without dropout and dropped layers, so that ways of training it have the same losses.

    Args:
        shape: one of ``ENCODERS``.
        config: changes of ``HubertConfig``.
    """
    import torch
    from transformers import HubertConfig, HubertForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    still = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
    settings = {
        "num_hidden_layers": ENCODERS[shape], "vocab_size": len(SPECIAL) + len(LETTERS), "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "layerdrop": 0.0, **dict.fromkeys(still, 0.0),
    }  # fmt: skip
    torch.manual_seed(len(shape))
    HubertForCTC(HubertConfig(**{**settings, **config})).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate([*SPECIAL, *LETTERS])}))
    Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
