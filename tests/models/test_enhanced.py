"""A recogniser that wears a denoiser: streams, mixing, gradients through the features, folders, layers copied."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_clips import clip, label_batch, padded
from pretrained import whisper_folder
from transformers import WhisperForConditionalGeneration

from rkd.errors import CheckpointError
from rkd.models import load_model, recogniser_folder, save_model
from rkd.models.ctc import CTC
from rkd.models.denoisers.convtasnet import ConvTasNet
from rkd.models.denoisers.mask import MaskDenoiser
from rkd.models.enhanced import Enhanced, Mixing, bare, estimated_snr_db, start_from, take_denoiser, with_padding
from rkd.models.hub_whisper import HubWhisper
from rkd.models.whisper import Whisper
from rkd.training.tuning import heights

FAMILIES, DENOISERS = {"ctc": CTC, "whisper": Whisper}, {"mask": MaskDenoiser, "convtasnet": ConvTasNet}
NO_LABELS = torch.zeros(1, 0, dtype=torch.long)
LABELS = label_batch([[1, 2, 3], [2, 3]])


def mask(seed=0, width=8):
    torch.manual_seed(seed)
    denoiser = MaskDenoiser("convolutional", width=width, layers=2)
    denoiser.mask.weight.data *= 50  # so that it does something
    return denoiser


@pytest.fixture(params=["ctc", "whisper"])
def worn(request, make_ctc, make_whisper):
    """Make a recogniser that wears a small denoiser."""
    recogniser = {"ctc": make_ctc, "whisper": make_whisper}[request.param]

    def make(mixing=1.0, seed=0, width=8, **shape):
        return Enhanced(recogniser(seed, **shape), mask(seed, width), mixing).eval()

    make.family = request.param
    return make


# --- windows ---------------------------------------------------------------------------------------------------------


def test_with_padding_the_denoiser_stays_on(tmp_path, make_ctc):
    recogniser = HubWhisper(whisper_folder(tmp_path / "v2", "v2"), window="trimmed").eval()
    model = Enhanced(recogniser, mask(), 1.0).eval()
    heard, (x_BT, lengths_B) = with_padding(model), padded([clip(8000)])
    labels_BL = label_batch([[1, 2]])

    def logits(system, heard_BT=x_BT):
        with torch.no_grad():
            return system(heard_BT, lengths_B, labels_BL)["logits"].values_BND

    denoised_BT = model.denoise(x_BT, lengths_B)[1].detach()
    assert torch.equal(logits(heard), logits(recogniser.with_padding(), denoised_BT))
    assert torch.equal(logits(model), logits(recogniser, denoised_BT))
    assert with_padding(heard) is None
    assert with_padding(Enhanced(make_ctc(), mask(), 1.0)) is None


# --- streams ---------------------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(700, 20000), min_size=2, max_size=3), st.sampled_from([0.3, "learned", "snr"]))
def test_batched_equals_alone(make_ctc, lengths, mixing):
    model = Enhanced(make_ctc(), mask(), mixing).eval()
    clips = [clip(n, i) for i, n in enumerate(lengths)]
    with torch.no_grad():
        together = model(*padded(clips, 300), NO_LABELS)
        for i, x_T in enumerate(clips):
            for name, stream in model(*padded([x_T]), NO_LABELS).items():
                n = int(stream.lengths_B[0])
                assert n == together[name].lengths_B[i]
                assert torch.allclose(together[name].values_BND[i, :n], stream.values_BND[0, :n], atol=1e-4), name


def test_it_gives_the_recognisers_streams_and_the_waveform(worn):
    model = worn()
    x = padded([clip(9000), clip(4000)])
    with torch.no_grad():
        streams, of_recogniser = model(*x, LABELS), model.recogniser(model.denoiser(*x), x[1], LABELS)
    waveform = streams.pop("waveform")
    assert waveform.values_BND.shape == (2, 9000, 1) and waveform.lengths_B.tolist() == [9000, 4000]
    assert waveform.stride == 1 and torch.equal(waveform.values_BND[..., 0], model.denoiser(*x))
    assert set(streams) == set(of_recogniser)
    assert all(torch.equal(streams[k].values_BND, of_recogniser[k].values_BND) for k in streams)
    assert model.transcribe(*x) == model.recogniser.transcribe(model.denoiser(*x), x[1])


def test_the_rest_is_the_recognisers(worn):
    model = worn()
    for name in ("tokenizer", "window_seconds", "depth", "width", "shape", "stride"):
        assert getattr(model, name) is getattr(model.recogniser, name)
    model.provide_attention("encoder")
    assert "attention.encoder.1" in model(*padded([clip(9000)]), LABELS[:1])
    assert bare(model) is model.recogniser and bare(model.recogniser) is model.recogniser


def test_what_stands_before_the_recogniser_is_fresh_and_at_the_bottom(worn):
    model = worn("learned")
    own = {name for name, _ in model.named_parameters() if name.startswith(("denoiser.", "mixing."))}
    assert own == set(model.fresh) and len(own) > 3
    height = heights(name for name, _ in model.named_parameters())
    assert {height[name] for name in own} == {0}


# --- mixing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, weight", [(1.0, 1.0), (0.0, 0.0), (0.25, 0.25), ("learned", 0.5)])
def test_the_mixture_by_hand(kind, weight):
    (a, lengths_B), (b, _) = padded([clip(500), clip(300)]), padded([clip(500, 1), clip(300, 1)])
    assert torch.allclose(Mixing(kind)(a, b, lengths_B), weight * a + (1 - weight) * b)


def test_the_less_was_taken_away_the_less_denoised_signal_is_mixed_in():
    speech_T, noise_T = clip(4000), clip(4000, 1)
    snrs_db, weights = [], []
    for gain in (2.0, 0.5, 0.1, 0.0):
        noisy_BT, lengths_B = padded([speech_T + gain * noise_T, speech_T])
        denoised_BT, _ = padded([speech_T, speech_T])
        snrs_db.append(float(estimated_snr_db(denoised_BT, noisy_BT, lengths_B)[0]))
        weights.append(Mixing("snr").weight(denoised_BT, noisy_BT, lengths_B)[0].item())
    expected_db = 10 * math.log10(float((speech_T**2).sum() / ((0.5 * noise_T) ** 2).sum()))
    assert snrs_db[1] == pytest.approx(expected_db, abs=1e-3) and snrs_db[3] == 40
    assert weights == sorted(weights, reverse=True) and weights[3] < 0.01
    assert weights == pytest.approx([1 / (1 + math.exp(-(10 - snr_db) / 5)) for snr_db in snrs_db], abs=1e-6)


def test_rubbish_beyond_the_end_does_not_count_as_removed():
    denoised_BT, lengths_B = padded([clip(400)], extra=100)
    noisy_BT = denoised_BT.clone()
    noisy_BT[0, 400:] = 7.0
    assert float(estimated_snr_db(denoised_BT, noisy_BT, lengths_B)) == 40


@pytest.mark.parametrize("kind, n", [(0.5, 0), ("learned", 1), ("snr", 2)])
def test_what_can_be_learned_of_the_mixing_gets_gradients(kind, n, make_ctc):
    model = Enhanced(make_ctc(), mask(), kind)
    model(*padded([clip(9000)]), NO_LABELS)["ctc_logits"].values_BND.square().mean().backward()
    parameters = list(model.mixing.parameters())
    assert len(parameters) == n and all(p.grad.abs().sum() > 0 for p in parameters)


# --- gradients -------------------------------------------------------------------------------------------------------


def test_the_recognition_loss_alone_trains_the_denoiser(worn):
    model = worn().train()
    before = {k: v.clone() for k, v in model.denoiser.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    streams = model(*padded([clip(9000), clip(4000)]), LABELS)
    streams["ctc_logits"].values_BND.square().mean().backward()
    optimizer.step()
    changed = [k for k, v in model.denoiser.state_dict().items() if not torch.equal(v, before[k])]
    assert set(changed) == {name for name, _ in model.denoiser.named_parameters()}


def test_gradients_are_finite_in_silence(worn):
    model = worn("snr").train()
    clips = [torch.zeros(9000), torch.cat([clip(4000), torch.zeros(3000)])]
    streams = model(*padded(clips), LABELS)
    sum(s.values_BND.square().mean() for s in streams.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", [0.5, "learned", "snr"])
def test_saved_and_loaded(worn, mixing, tmp_path):
    model = worn(mixing, seed=3)
    for p in model.mixing.parameters():
        p.data += 0.3
    save_model(model, worn.family, tmp_path / "m")
    loaded = load_model(tmp_path / "m", FAMILIES, DENOISERS).eval()
    x = padded([clip(9000), clip(4000)])
    with torch.no_grad():
        ours, theirs = model(*x, LABELS), loaded(*x, LABELS)
    assert isinstance(loaded, Enhanced) and loaded.mixing.kind == mixing
    assert all(torch.equal(ours[k].values_BND, theirs[k].values_BND) for k in ours)
    assert loaded.transcribe(*x) == model.transcribe(*x)
    card = json.loads((tmp_path / "m" / "rkd.json").read_text())
    assert card["recogniser"]["family"] == worn.family and "rkd.models" not in json.dumps(card)
    assert recogniser_folder(tmp_path / "m") == tmp_path / "m" / "recogniser"


def test_the_recogniser_is_a_transformers_folder(make_whisper, tmp_path):
    model = Enhanced(make_whisper(), mask(), 1.0)
    save_model(model, "whisper", tmp_path)
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path / "recogniser")
    ours = model.recogniser.hf.state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in loaded.state_dict().items())


@pytest.mark.parametrize("file", ["rkd.json", "denoiser/model.safetensors", "denoiser/denoiser.json",
                                  "mixing.safetensors", "recogniser/model.safetensors"])  # fmt: skip
def test_a_damaged_folder_is_refused(make_ctc, file, tmp_path):
    save_model(Enhanced(make_ctc(), mask(), "learned"), "ctc", tmp_path)
    (tmp_path / file).write_bytes(b"{")
    with pytest.raises(CheckpointError):
        load_model(tmp_path, FAMILIES, DENOISERS)


def test_an_unknown_denoiser_is_refused(make_ctc, tmp_path):
    save_model(Enhanced(make_ctc(), mask(), 1.0), "ctc", tmp_path)
    with pytest.raises(CheckpointError, match="names the denoiser mask; known are convtasnet"):
        load_model(tmp_path, FAMILIES, {"convtasnet": ConvTasNet})


# --- layers and denoisers copied -------------------------------------------------------------------------------------


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("teacher_wears", [True, False])
@pytest.mark.parametrize("student_wears", [True, False])
def test_a_student_takes_the_layers_and_an_equal_denoiser(make_ctc, teacher_wears, student_wears):
    teacher, student = make_ctc(1, encoder_layers=3), make_ctc(2, encoder_layers=2)
    teacher = Enhanced(teacher, mask(1), "learned") if teacher_wears else teacher
    student = Enhanced(student, mask(2), "learned") if student_wears else student
    if teacher_wears:
        teacher.mixing.logit.data += 1
    start_from(student, teacher)
    assert equal(bare(student).encoder.layers[1], bare(teacher).encoder.layers[2])
    if student_wears and teacher_wears:
        assert equal(student.denoiser, teacher.denoiser) and equal(student.mixing, teacher.mixing)


def test_a_denoiser_of_another_shape_is_not_taken(make_ctc):
    student, teacher = Enhanced(make_ctc(), mask(1, 8), 1.0), Enhanced(make_ctc(), mask(2, 12), 1.0)
    before = student.denoiser.mask.weight.clone()
    assert not take_denoiser(student, teacher) and torch.equal(student.denoiser.mask.weight, before)
    assert not take_denoiser(Enhanced(make_ctc(), ConvTasNet(), 1.0), teacher)
