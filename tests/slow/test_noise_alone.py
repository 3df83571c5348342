"""A model that has heard noise alone while it learned writes nothing on it."""

import numpy as np
import pytest
import torch

from rkd import assemble
from rkd.draws import Draws
from rkd.losses import CTC, CrossEntropy
from rkd.noise import Coloured, Corruption, Resources

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["whisper", "ctc"])
def test_words_on_noise_alone_go_to_zero(family, make_whisper, make_ctc, make_batches):
    pink = Coloured(-3)
    pink.load(Resources("train", list, dict, torch.device("cpu")))
    how = Corruption({"pink": pink}, {"pink": 1.0}, {"noise": 1.0}, [10.0, 20.0])

    def learned(only, seed):
        model = (make_whisper if family == "whisper" else make_ctc)(seed).train()
        term = CrossEntropy() if family == "whisper" else CTC()
        term.bind(model, None)
        batches, optimizer = make_batches(only=only), torch.optim.AdamW(model.parameters(), lr=4e-3)
        for step in range(300):
            batch = assemble.corrupt(batches.collate(step, np.arange(8)), how)
            loss = term(model(batch.noisy_BT, batch.lengths_B, batch.labels_BL), {}, batch) / batch.n_tokens
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model.eval()

    # The training's recordings, so as loud as there, in noise that it did not draw.
    batch = make_batches().collate(0, np.arange(24))
    arguments = batch.clean_BT, batch.lengths_B, batch.levels_db, batch.speakers, Draws(9, 0, range(24))
    noise_BT = how(*arguments, torch.zeros(24, dtype=torch.bool)).waveform_BT

    def words(model):
        return sum(len(text.split()) for text in model.transcribe(noise_BT, batch.lengths_B))

    # How many a model writes that never heard noise alone differs by a factor of five from seed to seed.
    assert sum(words(learned(0.0, seed)) for seed in (0, 1)) > 10
    for with_it in (learned(0.25, 0), learned(0.25, 1)):
        assert words(with_it) == 0
        heard = with_it.transcribe(batch.clean_BT[:8], batch.lengths_B[:8])
        assert sum(a == b for a, b in zip(heard, batch.texts[:8], strict=True)) >= 5  # and speech is still heard
