"""Pretrained CTC models: equal to plain Transformers, a clip alone and in a batch, students, folders."""

import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_clips import padded
from pretrained import LETTERS, ctc_folder, whisper_folder

from rkd.errors import CheckpointError, ConfigError
from rkd.models import load_model, save_model
from rkd.models.framewise import collapse
from rkd.models.hub_ctc import HubCTC
from rkd.tokenizer import build_letters, decode, difference, encode, load_tokenizer

FAMILIES = {"hubctc": HubCTC}
KINDS = ["wav2vec2-base", "hubert-large", "wavlm-base"]
NO_LABELS = torch.zeros(1, 0, dtype=torch.long)


def clip(n, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy((0.1 * rng.standard_normal(n) * np.sin(np.arange(n) / 900) + 0.01).astype(np.float32))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ctc")
    return {kind: ctc_folder(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("n", [1600, 9003])
def test_a_clip_alone_equals_plain_transformers(folders, kind, n):
    from transformers import AutoModelForCTC, Wav2Vec2Processor

    hf = AutoModelForCTC.from_pretrained(folders[kind]).eval()
    processor = Wav2Vec2Processor.from_pretrained(folders[kind])
    x_T = clip(n, 1)
    inputs = processor(x_T.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        theirs = hf(inputs.input_values, output_hidden_states=True)
        model = HubCTC(folders[kind]).eval()
        assert torch.allclose(model.normalise(*padded([x_T], 50)), inputs.input_values, atol=1e-5)
        ours = model(*padded([x_T], 50), NO_LABELS)
    assert ours["ctc_logits"].lengths_B.tolist() == [theirs.logits.shape[1]] and ours["ctc_logits"].stride == 320
    scale = float(theirs.logits.abs().max())
    assert torch.allclose(ours["ctc_logits"].values_BND, theirs.logits, atol=1e-4 * scale)
    for i, hidden in enumerate(theirs.hidden_states):
        assert torch.allclose(ours[f"hidden.encoder.{i}"].values_BND, hidden, atol=1e-4)
    text = processor.batch_decode(theirs.logits.argmax(-1))[0]
    spoken = re.sub("<.*?>", "", text).strip().lower()
    assert spoken and model.transcribe(*padded([x_T], 50)) == [spoken]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1600, 32000), min_size=2, max_size=4), st.integers(0, 100))
def test_batched_equals_alone(folders, kind, lengths, seed):
    model = HubCTC(folders[kind]).eval()
    clips = [clip(n, seed + i) for i, n in enumerate(lengths)]
    with torch.no_grad():
        together = model(*padded(clips, 300), NO_LABELS)
        for i, x_T in enumerate(clips):
            for name, stream in model(*padded([x_T]), NO_LABELS).items():
                n = int(stream.lengths_B[0])
                assert together[name].lengths_B[i] == n
                scale = max(1.0, float(stream.values_BND.abs().max()))
                assert torch.allclose(together[name].values_BND[i, :n], stream.values_BND[0, :n], atol=1e-4 * scale)


def test_the_layers_warn_of_nothing(folders, kind):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UserWarning)
        HubCTC(folders[kind]).eval()(*padded([clip(9000), clip(4000)]), NO_LABELS)


def test_without_the_mask_the_group_norm_hears_the_padding(folders):
    from transformers import AutoModelForCTC

    hf = AutoModelForCTC.from_pretrained(folders["wav2vec2-base"]).eval()
    x_T = clip(6000)
    with torch.no_grad():
        alone, batched = hf(x_T[None]).logits, hf(torch.nn.functional.pad(x_T, (0, 20000))[None]).logits
    assert (alone - batched[:, : alone.shape[1]]).abs().max() > 1e-2


def test_training_draws_nothing_from_numpy(folders):
    model = HubCTC(folders["wav2vec2-base"]).train()
    before = np.random.get_state()[1].copy()
    model(*padded([clip(20000)]), NO_LABELS)["ctc_logits"].values_BND.sum().backward()
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("lower", [False, True])
def test_labels_are_in_the_models_case(tmp_path, lower):
    tokenizer = load_tokenizer(ctc_folder(tmp_path / "m", lower=lower))
    ids = encode(tokenizer, "one two's")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    assert ids == [letters.index(c) for c in "ONE|TWO'S"] + [2]
    assert decode(tokenizer, ids) == "one two's"
    assert decode(tokenizer, collapse([0, 8, 8, 9, 0, 5, 5, 4, 0], 0)) == "one"


@pytest.mark.parametrize("head", ["plain", "CTC without a tokenizer"])
def test_a_bare_encoder_gets_a_fresh_head_for_the_corpus(folders, kind, tmp_path, head):
    from transformers import AutoModel

    folder = shutil.copytree(folders[kind], tmp_path / "bare")
    if head == "plain":
        AutoModel.from_pretrained(folders[kind]).save_pretrained(folder)
    for name in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    tokenizer = HubCTC.new_tokenizer(["one two"], "auto")
    torch.manual_seed(0)
    model = HubCTC(folder, tokenizer=tokenizer).eval()
    whole = HubCTC(folders[kind]).hf.base_model.state_dict()
    for name, value in model.hf.base_model.state_dict().items():
        assert torch.equal(value, whole[name]), name
    save_model(model, "hubctc", tmp_path / "m")
    loaded = load_model(tmp_path / "m", FAMILIES).eval()
    x = padded([clip(9000), clip(4000)])
    assert loaded.transcribe(*x) == model.transcribe(*x) and difference(loaded.tokenizer, tokenizer) is None
    with pytest.raises(CheckpointError, match="tokenizer"):
        HubCTC(folder)


def test_a_vocabulary_of_its_own(folders, kind):
    tokenizer = HubCTC.new_tokenizer(["über 2", "ab"], "auto")
    assert decode(tokenizer, encode(tokenizer, "über 2")) == "über 2" and tokenizer.pad_token_id == 0
    model = HubCTC(folders[kind], tokenizer=tokenizer).eval()
    with torch.no_grad():
        assert model(*padded([clip(9000)]), NO_LABELS)["ctc_logits"].values_BND.shape[-1] == len(tokenizer) == 11
    kept = HubCTC(folders[kind]).hf.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in model.hf.state_dict().items() if "lm_head" not in k)


def test_layers_are_copied(folders, kind):
    teacher = HubCTC(folders[kind])
    student = HubCTC(folders[kind], weights=False, encoder_layers=2)
    student.start_from(teacher, [1, 2] if kind == "wavlm-base" else None, None)
    ours, theirs = student.hf.state_dict(), teacher.hf.state_dict()
    chosen = [1, 2] if kind == "wavlm-base" else [0, 2]
    for name, value in ours.items():
        origin = name
        for i, layer in enumerate(chosen):
            origin = name.replace(f".layers.{i}.", f".layers.{layer}.") if f".layers.{i}." in name else origin
        assert torch.equal(value, theirs[name if origin not in theirs else origin]), name
    with pytest.raises(ConfigError, match="fewer need student"):
        HubCTC(folders[kind], encoder_layers=1)


@pytest.mark.parametrize("own_vocabulary", [False, True])
def test_saved_loaded_and_in_the_pipeline(folders, kind, tmp_path, own_vocabulary):
    from transformers import pipeline

    model = HubCTC(folders[kind], tokenizer=build_letters(["ab cd"]) if own_vocabulary else None).eval()
    with torch.no_grad():
        model.hf.lm_head.weight *= 30 if own_vocabulary else 1
    save_model(model, "hubctc", tmp_path / "m")
    loaded = load_model(tmp_path / "m", FAMILIES).eval()
    assert difference(loaded.tokenizer, model.tokenizer) is None
    x = padded([clip(16000), clip(9000, 1)])
    with torch.no_grad():
        a, b = model(*x, NO_LABELS), loaded(*x, NO_LABELS)
    assert all(torch.equal(a[k].values_BND, b[k].values_BND) for k in a)
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / "m"), device="cpu")
    written = recognise({"raw": clip(16000).numpy(), "sampling_rate": 16000})["text"]
    assert re.sub("<.*?>", "", written).strip().lower() == model.transcribe(*x)[0]


@pytest.mark.parametrize("damage", ["weights", "config.json", "preprocessor_config.json", "vocab.json"])
def test_a_damaged_folder_is_named(folders, tmp_path, damage):
    copy = shutil.copytree(folders["hubert-large"], tmp_path / "copy")
    if damage == "weights":
        (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:2000])
    else:
        (copy / damage).write_text("{")
    with pytest.raises(CheckpointError, match="copy"):
        HubCTC(copy)


def test_another_kind_of_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is a whisper model"):
        HubCTC(whisper_folder(tmp_path / "m"))


def test_an_encoder_without_a_head_is_named(folders, tmp_path):
    from transformers import AutoModel

    copy = shutil.copytree(folders["hubert-large"], tmp_path / "copy")
    AutoModel.from_pretrained(copy).save_pretrained(copy)
    with pytest.raises(CheckpointError, match="lm_head"):
        HubCTC(copy)
    assert HubCTC(copy, tokenizer=build_letters(["ab"])).hf.lm_head.out_features == 7


@pytest.mark.parametrize("form", ["shards", "pytorch_model.bin"])
def test_other_forms_of_weights(folders, tmp_path, form):
    copy = shutil.copytree(folders["hubert-large"], tmp_path / "copy")
    expected = HubCTC(copy).hf
    (copy / "model.safetensors").unlink()
    if form == "shards":
        expected.save_pretrained(copy, max_shard_size="50KB")
        assert len(list(copy.glob("model-*-of-*.safetensors"))) > 1
    else:
        torch.save(expected.state_dict(), copy / form)
    found = HubCTC(copy).hf.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.state_dict().items())


def test_a_pickle_that_runs_code_is_refused(folders, tmp_path):
    class Code:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    copy = shutil.copytree(folders["hubert-large"], tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Code()}, copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="copy"):
        HubCTC(copy)
    assert not (tmp_path / "ran").exists()
