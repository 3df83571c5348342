"""Deep Speech and the convolutional model: a clip alone and in a batch, folders, layers copied, learning."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_clips import clip, padded

from rkd.errors import CheckpointError, ConfigError
from rkd.losses import CTC
from rkd.models import load_model, save_model
from rkd.models.deepspeech import DeepSpeech
from rkd.models.mfccnet import MFCCNet
from rkd.trainer import Objective

WINDOW = 2 * 16000
NO_LABELS = torch.zeros(1, 0, dtype=torch.long)
FAMILIES = {"deepspeech": DeepSpeech, "mfccnet": MFCCNet}


@pytest.fixture(params=FAMILIES)
def make(request, tokenizer):
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        shape = {
            "deepspeech": {"width": 24, "n_fft": 320, "hop": 320, "dropout": 0.0},
            "mfccnet": {"width": 24, "encoder_layers": 3, "kernel": 5, "n_mfcc": 13, "n_mels": 24, "hop": 160,
                         "dropout": 0.0},
        }[request.param]  # fmt: skip
        return FAMILIES[request.param](tokenizer, 2, **{**shape, **changes}).eval()

    make.family = request.param
    return make


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(400, WINDOW), min_size=2, max_size=4), st.integers(0, 100))
@pytest.mark.parametrize("family", FAMILIES)
def test_streams_batched_equal_alone(tokenizer, family, lengths, seed):
    torch.manual_seed(seed)
    model = {
        "deepspeech": lambda: DeepSpeech(tokenizer, 2, 24, 320, 320, 0.0),
        "mfccnet": lambda: MFCCNet(tokenizer, 2, 24, 3, 5, 13, 24, 160, 0.0),
    }[family]().eval()
    clips = [clip(n, i) for i, n in enumerate(lengths)]
    with torch.no_grad():
        together = model(*padded(clips, 300), NO_LABELS)
        assert set(together) == {"ctc_logits", *(f"hidden.encoder.{i}" for i in range(model.depth["encoder"] + 1))}
        for i, x_T in enumerate(clips):
            for name, stream in model(*padded([x_T]), NO_LABELS).items():
                n = int(stream.lengths_B[0])
                assert n == together[name].lengths_B[i] == -(-len(x_T) // 320) and stream.stride == 320
                assert torch.allclose(together[name].values_BND[i, :n], stream.values_BND[0, :n], atol=1e-4), name
                assert name == "ctc_logits" or stream.values_BND.shape[2] == model.width


def test_the_output_depends_on_what_comes_later_and_earlier(make):
    x_T, model = clip(WINDOW), make()
    with torch.no_grad():
        whole = model(*padded([x_T]), NO_LABELS)["ctc_logits"].values_BND[0]
        changed_T = x_T.clone()
        changed_T[15000:17000] += 0.2 * torch.sin(torch.arange(2000) / 5)
        changed = model(*padded([changed_T]), NO_LABELS)["ctc_logits"].values_BND[0]
    assert (whole - changed).abs().amax(1)[46:54].min() > 1e-4


def test_saved_and_loaded(make, tmp_path):
    model = make(3)
    save_model(model, make.family, tmp_path / "m")
    loaded = load_model(tmp_path / "m", FAMILIES).eval()
    x = padded([clip(9000), clip(4000)])
    with torch.no_grad():
        ours, theirs = (m(*x, NO_LABELS)["ctc_logits"].values_BND for m in (model, loaded))
    assert torch.equal(ours, theirs) and loaded.shape == model.shape
    (tmp_path / "m" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="readable"):
        load_model(tmp_path / "m", FAMILIES)


def test_a_student_starts_from_its_teacher(make):
    teacher, student = make(1), make(2)
    student.start_from(teacher, None, None)
    x = padded([clip(9000)])
    with torch.no_grad():
        assert torch.equal(
            student(*x, NO_LABELS)["ctc_logits"].values_BND, teacher(*x, NO_LABELS)["ctc_logits"].values_BND
        )
    with pytest.raises(ConfigError, match="width"):
        make(2, width=16).start_from(teacher, None, None)


def test_it_learns_a_batch_by_heart(make, make_batches, run_training, tmp_path):
    model, batches = make(1, width=48).train(), make_batches(100.0)
    few = batches.collate(0, np.arange(6))
    batches.epoch = lambda epoch: [np.arange(6)]
    told = run_training(
        Objective(model, {"ctc": CTC()}, {"ctc": 1.0}), batches, tmp_path, steps=300, learning_rate=6e-3,
        validate_every=300, validate=lambda student: 0.0,
    )  # fmt: skip
    assert told.losses[-1]["ctc"] < 0.05 * told.losses[0]["ctc"]
    assert model.eval().transcribe(few.clean_BT, few.lengths_B) == few.texts
