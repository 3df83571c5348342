"""Pretrained Whisper models: equal to plain Transformers, a clip alone and in a batch, prompts, students, folders."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_clips import clip, label_batch, padded
from pretrained import whisper_folder

from rkd.errors import CheckpointError, ConfigError, DataError
from rkd.models import load_model, save_model
from rkd.models.hub_whisper import HubWhisper, language_code
from rkd.tokenizer import build_tokenizer, difference, encode

FAMILIES = {"hubwhisper": HubWhisper}


@pytest.fixture(scope="module", params=["en", "v2", "v3"])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("whisper")
    return {version: whisper_folder(root / version, version) for version in ("en", "v2", "v3")}


@pytest.fixture(scope="module")
def plain(folders, version):
    """Transformers' own model and feature extractor."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folders[version], attn_implementation="eager").eval()
    return model, WhisperFeatureExtractor.from_pretrained(folders[version])


@pytest.mark.parametrize("n", [400, 17000, 480000])
def test_the_original_window_equals_plain_transformers(folders, version, plain, n):
    hf, extractor = plain
    model = HubWhisper(folders[version], window="original").eval()
    x_T = clip(n, 3)
    tokens = encode(model.tokenizer, "one two hi")
    mel = extractor(x_T.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        assert torch.allclose(model.features.of_window(x_T[None], torch.tensor([n]), 480000), mel, atol=1e-4)
        inputs = torch.tensor([model.prompt + tokens[:-1]])
        theirs = hf(input_features=mel, decoder_input_ids=inputs, output_hidden_states=True)
        ours = model(*padded([x_T]), label_batch([tokens]))
    expected = theirs.logits[0, len(model.prompt) - 1 :]
    assert torch.allclose(ours["logits"].values_BND[0], expected, atol=1e-4 * float(expected.abs().max()))
    last = ours["hidden.encoder.2"]
    assert (
        last.lengths_B.tolist() == [last.values_BND.shape[1]] == [math.ceil(math.ceil(n / 160) / 2)]
        and last.stride == 320
    )
    expected = theirs.encoder_last_hidden_state[0, : last.values_BND.shape[1]]
    assert torch.allclose(last.values_BND[0], expected, atol=1e-3)


def test_greedy_tokens_equal_plain_transformers(folders, version, plain):
    hf, extractor = plain
    model = HubWhisper(folders[version], window="original").eval()
    language = {} if version == "en" else {"language": "en", "task": "transcribe"}
    written = set()
    for seed in range(3):
        x_T = clip(20000 + 9000 * seed, seed)
        mel = extractor(x_T.numpy(), sampling_rate=16000, return_tensors="pt").input_features
        theirs = hf.generate(mel, max_new_tokens=24, **language)[0].tolist()
        ours = model.search(*padded([x_T]))[0][len(model.prompt) :]
        theirs = [t for t in theirs if t not in model.prompt]
        n = min(len(ours), len(theirs), 20)  # the number of new tokens counts the prompt there
        assert n >= 1 and ours[:n] == theirs[:n]
        written.add(tuple(ours))
    assert len(written) > 1  # random weights hear something


def test_timestamps_equal_plain_transformers(folders, version, plain):
    hf, extractor = plain
    model = HubWhisper(folders[version], window="original").eval()
    language = {} if version == "en" else {"language": "en", "task": "transcribe"}
    for seed in range(3):
        x_T = clip(20000 + 9000 * seed, seed)
        mel = extractor(x_T.numpy(), sampling_rate=16000, return_tensors="pt").input_features
        theirs = hf.generate(mel, max_new_tokens=24, return_timestamps=True, **language)[0].tolist()
        theirs = [t for t in theirs if t not in model.prompt]
        [ours] = model.write(*padded([x_T]), 1, True)
        # After the second one Transformers goes on with the window that begins there.
        first, second, *_ = (i for i, token in enumerate(ours) if token >= model.timed_from)
        assert first == 0 and second >= 2 and ours[: second + 1] == theirs[: second + 1]


def test_each_clip_of_a_batch_has_a_prompt_of_its_own(folders, version, plain):
    hf, extractor = plain
    model = HubWhisper(folders[version], window="original").eval()
    clips = [clip(n, i) for i, n in enumerate((9000, 20000, 14000, 17000))]
    stamps = model.tokenizer.convert_tokens_to_ids(["<|0.00|>", "<|0.60|>"])
    tokens = [encode(model.tokenizer, text) for text in ("one two", "three", "four five six", "seven")]
    labels = [tokens[0], [stamps[0], *tokens[1][:-1], *stamps[1:], tokens[1][-1]], tokens[2], [stamps[0], *tokens[3]]]
    told = [model.told("nine one"), [], [], model.told("two")]
    with torch.no_grad():
        ours = model(*padded(clips), label_batch(labels), label_batch(told))
        for i, (x_T, row) in enumerate(zip(clips, labels, strict=True)):
            prompt = [*told[i], *(model.prompt[:-1] if row[0] == stamps[0] else model.prompt)]
            mel = extractor(x_T.numpy(), sampling_rate=16000, return_tensors="pt").input_features
            theirs = hf(input_features=mel, decoder_input_ids=torch.tensor([prompt + row[:-1]]),
                        output_hidden_states=True)  # fmt: skip
            for name, expected in (
                ("logits", theirs.logits), ("hidden.decoder.1", theirs.decoder_hidden_states[1]),
            ):  # fmt: skip
                expected, stream = expected[0, len(prompt) - 1 :], ours[name]
                assert stream.lengths_B[i] == len(row)
                assert torch.allclose(
                    stream.values_BND[i, : len(row)], expected, atol=1e-4 * float(expected.abs().max())
                )


def test_what_was_said_before_is_cut_to_half_the_decoder(folders):
    model = HubWhisper(folders["v2"])
    told = model.told("one two " * 400)
    whole = encode(model.tokenizer, "one two " * 400)[:-1]
    assert told[0] == model.tokenizer.convert_tokens_to_ids("<|startofprev|>")
    assert len(told) == 448 // 2 and told[1:] == whole[-223:]


def test_a_vocabulary_without_timestamps_is_refused(folders):
    model = HubWhisper(folders["v2"], tokenizer=build_tokenizer(["one two"]))
    with pytest.raises(ConfigError, match=r"transcripts\.timestamps=0"):
        model.write(*padded([clip(9000, 1)]), 1, True)
    with pytest.raises(ConfigError, match=r"transcripts\.text_before=0"):
        model.told("one")


def test_the_prompt(folders):
    def names(version, **settings):
        model = HubWhisper(folders[version], weights=False, **settings)
        return model.tokenizer.convert_ids_to_tokens(model.prompt)

    assert names("en") == ["<|startoftranscript|>", "<|notimestamps|>"]
    assert names("v2") == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert names("v3", language="yue", task="translate")[1:3] == ["<|yue|>", "<|translate|>"]
    with pytest.raises(ConfigError, match="language=yue"):
        names("v2", language="yue")
    with pytest.raises(ConfigError, match="only transcribes one language"):
        names("en", language="de")


def test_tokens_that_the_model_suppresses_are_never_written(folders):
    model = HubWhisper(folders["v2"]).eval()
    suppressed = set(model.decoding.suppress_tokens)
    assert len(suppressed) > 5
    for seed in range(4):
        [found] = model.search(*padded([clip(30000, seed)]))
        assert not suppressed & set(found[len(model.prompt) :])
        assert found[len(model.prompt)] not in model.decoding.begin_suppress_tokens


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(400, 48000), min_size=2, max_size=3), st.integers(0, 100))
@pytest.mark.parametrize("window", ["original", "trimmed"])
def test_batched_equals_alone(folders, window, lengths, seed):
    model = HubWhisper(folders["v3"], window=window).eval()
    rng = np.random.default_rng(seed)
    rows = [encode(model.tokenizer, " ".join(rng.choice(["one", "two", "hi"], rng.integers(1, 5)))) for _ in lengths]
    clips = [clip(n, seed + i) for i, n in enumerate(lengths)]
    with torch.no_grad():
        together = model(*padded(clips, 300), label_batch(rows))
        for i, (x_T, tokens) in enumerate(zip(clips, rows, strict=True)):
            for name, stream in model(*padded([x_T]), label_batch([tokens])).items():
                n = int(stream.lengths_B[0])
                assert together[name].lengths_B[i] == n
                scale = max(1.0, float(stream.values_BND.abs().max()))
                assert torch.allclose(together[name].values_BND[i, :n], stream.values_BND[0, :n], atol=1e-4 * scale)
    if seed % 2:
        assert model.transcribe(*padded(clips, 300)) == [model.transcribe(*padded([x_T]))[0] for x_T in clips]


def test_the_windows_differ(folders):
    """What the masks are for: without them a short clip is lost in 30 s."""
    x = padded([clip(8000)])
    original, trimmed = (HubWhisper(folders["v2"], window=window).eval() for window in ("original", "trimmed"))
    with torch.no_grad():
        labels_BL = label_batch([encode(original.tokenizer, "one")])
        a, b = original(*x, labels_BL)["logits"].values_BND, trimmed(*x, labels_BL)["logits"].values_BND
    assert (a - b).abs().max() > 1e-2


def test_with_padding_a_trimmed_model_hears_as_the_original(folders):
    x, trimmed = padded([clip(8000)]), HubWhisper(folders["v2"], window="trimmed").eval()
    labels_BL = label_batch([encode(trimmed.tokenizer, "one")])

    def logits(model):
        with torch.no_grad():
            return model(*x, labels_BL)["logits"].values_BND

    before, heard = logits(trimmed), trimmed.with_padding()
    assert torch.equal(logits(heard), logits(HubWhisper(folders["v2"], window="original").eval()))
    assert torch.equal(logits(trimmed), before)
    assert all(a is b for a, b in zip(heard.parameters(), trimmed.parameters(), strict=True))
    assert heard.with_padding() is None


@pytest.mark.parametrize("window", ["original", "trimmed"])
def test_a_clip_longer_than_the_window_is_refused(folders, window):
    with pytest.raises(DataError, match=r"data\.max_seconds=30"):
        HubWhisper(folders["v2"], weights=False, window=window).transcribe(*padded([clip(480001)]))


# --- students --------------------------------------------------------------------------------------------------------


def test_layers_are_copied(tmp_path):
    folder = whisper_folder(tmp_path / "teacher", "v3", encoder_layers=4, decoder_layers=4)
    teacher = HubWhisper(folder, window="original").eval()
    student = HubWhisper(folder, weights=False, encoder_layers=4, decoder_layers=2)
    student.start_from(teacher, None, None)
    assert student.depth == {"encoder": 4, "decoder": 2}
    ours, theirs = student.hf.state_dict(), teacher.hf.state_dict()
    for name, value in ours.items():
        origin = name.replace("decoder.layers.1.", "decoder.layers.3.")
        assert torch.equal(value, theirs[origin]), name
    assert not any(p.data_ptr() == q.data_ptr() for p in student.parameters() for q in teacher.parameters())
    with pytest.raises(ConfigError, match="expected 2 layer numbers"):
        student.start_from(teacher, None, [0, 4])
    with pytest.raises(ConfigError, match="6 layers and the teacher 4"):
        HubWhisper(folder, weights=False, decoder_layers=6).start_from(teacher, None, None)


def test_fewer_layers_with_the_same_weights_are_refused(folders):
    with pytest.raises(ConfigError, match="fewer need student"):
        HubWhisper(folders["v2"], decoder_layers=1)


def test_random_weights_are_not_the_folders(folders):
    torch.manual_seed(1)
    a, b = (HubWhisper(folders["v2"], weights=weights).hf.state_dict() for weights in (True, False))
    assert not torch.equal(a["model.encoder.layers.0.fc1.weight"], b["model.encoder.layers.0.fc1.weight"])
    positions = "model.encoder.embed_positions.weight"
    assert torch.allclose(a[positions], b[positions], atol=1e-5)


def test_a_vocabulary_of_its_own(folders):
    tokenizer = HubWhisper.new_tokenizer(["one two", "ten"], "auto")
    model = HubWhisper(folders["v3"], tokenizer=tokenizer).eval()
    assert model.prompt == tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    with torch.no_grad():
        tokens = encode(tokenizer, "ten one")
        assert model(*padded([clip(9000)]), label_batch([tokens]))["logits"].values_BND.shape == (1, 3, len(tokenizer))
    kept = HubWhisper(folders["v3"]).hf.state_dict()
    for name, value in model.hf.state_dict().items():
        if "embed_tokens" not in name and "proj_out" not in name:
            assert torch.equal(value, kept[name]), name
    assert float(model.hf.model.decoder.embed_tokens.weight.detach().std()) > 0


def test_a_search_warns_of_nothing(folders, monkeypatch):
    from transformers.generation import utils

    said = []
    monkeypatch.setattr(utils.logger, "warning_once", lambda message, *_: said.append(message))
    model = HubWhisper(folders["v2"]).eval()
    for beams in (1, 2):
        model.transcribe(*padded([clip(9000), clip(4000)]), beams)
    assert not said


# --- folders ---------------------------------------------------------------------------------------------------------


def students(folder):
    teacher = HubWhisper(folder, window="original")
    fewer = HubWhisper(folder, weights=False, decoder_layers=1)
    fewer.start_from(teacher, None, None)
    return {"whole": HubWhisper(folder), "fewer layers": fewer,
            "own vocabulary": HubWhisper(folder, tokenizer=build_tokenizer(["one two", "three"]))}  # fmt: skip


@pytest.mark.parametrize("kind", ["whole", "fewer layers", "own vocabulary"])
def test_saved_loaded_and_in_the_pipeline(folders, version, tmp_path, kind):
    from transformers import pipeline

    model = students(folders[version])[kind].eval()
    save_model(model, "hubwhisper", tmp_path / "m")
    loaded = load_model(tmp_path / "m", FAMILIES).eval()
    assert loaded.prompt == model.prompt and loaded.shape == model.shape and loaded.depth == model.depth
    assert difference(loaded.tokenizer, model.tokenizer) is None
    x = padded([clip(9000), clip(4000)])
    assert loaded.search(*x) == model.search(*x)
    whole = HubWhisper(tmp_path / "m", window="original", language="en").eval()
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / "m"), device="cpu")
    x_T = clip(24000, 2)
    settings = {"max_new_tokens": 12, "num_beams": 1}
    written = recognise({"raw": x_T.numpy(), "sampling_rate": 16000}, generate_kwargs=settings)["text"]
    [found] = whole.search(*padded([x_T]))
    expected = whole.tokenizer.decode(found[len(whole.prompt) :][:12], skip_special_tokens=True)
    shorter, longer = sorted([written.strip(), expected.strip()], key=len)  # what counts as new differs by version
    assert (shorter or kind == "own vocabulary") and longer.startswith(shorter)


@pytest.mark.parametrize("named", [None, "<|de|>", "german"])
def test_a_folder_in_transformers_own_form_is_heard_as_pretrained(folders, version, tmp_path, named):
    folder = shutil.copytree(folders[version], tmp_path / "raw")
    if named and version != "en":
        settings = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps(settings | {"language": named}))
    language = "de" if named and version != "en" else "en"
    model = load_model(folder, FAMILIES).eval()
    assert model.shape == {"language": language, "task": "transcribe", "window": "original"}
    x = padded([clip(9000), clip(4000)])
    assert model.search(*x) == HubWhisper(folder, language=language, window="original").eval().search(*x)


def test_tables_of_languages_are_made_where_they_lack(folders, tmp_path, capsys):
    from transformers import GenerationConfig

    folder = shutil.copytree(folders["v2"], tmp_path / "raw")
    settings = json.loads((folder / "generation_config.json").read_text())
    lost = {key: settings.pop(key) for key in ("lang_to_id", "task_to_id")}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = HubWhisper(folder, language="de")
    said = capsys.readouterr().err
    assert "has no lang_to_id: made from the tokenizer" in said and "task_to_id" in said
    save_model(model, "hubwhisper", tmp_path / "m")
    made = GenerationConfig.from_pretrained(tmp_path / "m")
    assert {key: getattr(made, key) for key in lost} == lost


@pytest.mark.parametrize("tag, code", [("de", "de"), ("de-CH", "de"), ("German", "de"), ("zh-CN", "zh"),
                                       ("yue", "yue"), ("klingon", None), ("", None)])  # fmt: skip
def test_language_codes(tag, code):
    assert language_code(tag) == code


@pytest.mark.parametrize("damage", ["weights", "config.json", "tokenizer_config.json", "preprocessor_config.json",
                                    "shape"])  # fmt: skip
def test_a_damaged_folder_is_named(folders, tmp_path, damage):
    copy = shutil.copytree(folders["v2"], tmp_path / "copy")
    if damage == "weights":
        (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:2000])
    elif damage == "shape":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"encoder_ffn_dim": 128}))
    else:
        (copy / damage).write_text("{")
    with pytest.raises(CheckpointError, match="copy"):
        HubWhisper(copy)
