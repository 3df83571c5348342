"""A trained student says the same in Transformers' own pipeline as in rkd."""

import numpy as np
import pytest
import torch
from pretrained import ctc_folder, whisper_folder

from rkd.data.batches import Batches
from rkd.losses import CTC, CrossEntropy
from rkd.models import load_model, save_model
from rkd.models.hub_ctc import HubCTC
from rkd.models.hub_whisper import HubWhisper
from rkd.tokenizer import encode

pytestmark = pytest.mark.slow


def learn(model, store, term, steps, rate):
    """Let a model learn some utterances by heart; return their waveforms and texts."""
    labels = [encode(model.tokenizer, text) for text in store.texts]
    batch = Batches(store, labels, 60.0, 0, 0.0, 2.0).collate(0, np.arange(16))
    loss_term = term()
    loss_term.bind(model, None)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate)
    for _ in range(steps):
        loss = loss_term(model(batch.clean_BT, batch.lengths_B, batch.labels_BL), {}, batch)
        optimizer.zero_grad()
        (loss / batch.n_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    waves = [x_T[:n] for x_T, n in zip(batch.clean_BT, batch.lengths_B.tolist(), strict=True)]
    return model.eval(), waves, batch.texts


def in_pipeline(folder, waves, **settings):
    from transformers import pipeline

    recognise = pipeline("automatic-speech-recognition", str(folder), device="cpu")
    return [recognise({"raw": x_T.numpy(), "sampling_rate": 16000}, **settings)["text"].strip() for x_T in waves]


def alone(model, waves, beams=1):
    return [text for x_T in waves for text in model.transcribe(x_T[None], torch.tensor([len(x_T)]), beams)]


def test_a_whisper_student(store, tmp_path):
    folder = whisper_folder(tmp_path / "source")
    torch.manual_seed(0)
    student = HubWhisper(folder, weights=False, window="trimmed")
    student, waves, texts = learn(student, store, CrossEntropy, 150, 4e-3)
    heard = alone(student, waves)
    assert sum(a == b for a, b in zip(heard, texts, strict=True)) > 8 and len(set(heard)) > 4
    save_model(student, "hubwhisper", tmp_path / "m")
    window = HubWhisper(tmp_path / "m", window="original").eval()
    assert in_pipeline(tmp_path / "m", waves, generate_kwargs={"num_beams": 1}) == alone(window, waves)
    assert in_pipeline(tmp_path / "m", waves) == alone(window, waves, beams=5)  # the pipeline's default


@pytest.mark.parametrize("kind", ["wav2vec2-base", "hubert-large"])
def test_a_ctc_student(store, tmp_path, kind):
    folder = ctc_folder(tmp_path / "source", kind, conv_dim=(32,) * 7)
    torch.manual_seed(0)
    student, waves, _ = learn(HubCTC(folder, weights=False), store, CTC, 200, 3e-3)
    save_model(student, "hubctc", tmp_path / "m")
    heard = alone(load_model(tmp_path / "m", {"hubctc": HubCTC}).eval(), waves)
    assert len(set(heard)) > 4 and any("ee" in text for text in heard)
    # Capital letters alone come back small in rkd.
    assert [text.lower() for text in in_pipeline(tmp_path / "m", waves)] == heard
