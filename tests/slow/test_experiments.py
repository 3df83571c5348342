"""Each named experiment runs through the real command, and does what makes it different from the others."""

import json

import corpora
import numpy as np
import pytest
import torch
from pretrained import ctc_folder, whisper_folder
from recordings import save
from safetensors.torch import load_file

from rkd.cli import main
from rkd.config import compose
from rkd.training import checkpoint
from rkd.transcripts import compression_ratio

pytestmark = pytest.mark.slow

DIGITS = ["data.n_train=24", "data.n_validation=4", "data.n_test=4", "data.length=[1,2]"]
SMALL = ["trainer.steps=4", "device=cpu"]
WHITE = ["noise=white"]
TEACHER = ["teacher.trainer.steps=2", "noise@teacher.noise=white"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    whisper_folder(root / "whisper-tiny", "v2")
    whisper_folder(root / "whisper-small", "v2", seed=1)
    ctc_folder(root / "wav2vec2-base", "wav2vec2-base")
    return root


@pytest.fixture
def distil(tmp_path, monkeypatch, capsys):
    """Run an experiment; return the student's model folder, its losses by step, and what people read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(experiment, *overrides, corpus=DIGITS, noise=WHITE):
        code = main(["distill", f"experiment=[{experiment},smoke]", *corpus, *noise, *SMALL, "log_every=1", *overrides])
        said = capsys.readouterr()
        assert not code, said.err
        folder = tmp_path / said.out.strip()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return folder / "model", [line["loss"] for line in lines if "loss" in line], said.err

    return run


def changed(before, after):
    """Return the names of the weights that a training changed; both folders have the same ones."""
    ours, theirs = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not ours[name].equal(theirs[name])}


def test_lora_changes_what_it_adapts_alone(distil, models):
    source = models / "whisper-tiny"
    model, losses, _ = distil("lora", f"student.source={source}")
    names = changed(source, model)
    assert names and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in names)
    assert set(losses[0]) == {"labels"}


def test_whisper_kd_trains_its_teacher_in_noise(distil, models):
    model, losses, said = distil(
        "whisper_kd",
        f"student.source={models / 'whisper-tiny'}",
        f"teacher.source={models / 'whisper-small'}",
        *TEACHER,
    )
    assert set(losses[0]) == {"labels", "soft"} and "train-teacher step 2/2" in said
    assert changed(models / "whisper-tiny", model)


def test_ctc_finetune_leaves_the_convolutions_and_makes_a_vocabulary(distil, models):
    source = models / "wav2vec2-base"
    model, _, _ = distil("ctc_finetune", f"student.source={source}")
    ours, theirs = load_file(source / "model.safetensors"), load_file(model / "model.safetensors")
    convolutions = [name for name in ours if "feature_extractor" in name]
    assert convolutions and all(ours[name].equal(theirs[name]) for name in convolutions)
    assert any(not ours[name].equal(theirs[name]) for name in ours if ".layers." in name)
    letters = set(json.loads((model / "vocab.json").read_text()))
    assert {"z", "e", "r", "o"} <= {letter.lower() for letter in letters}
    assert theirs["lm_head.weight"].shape[0] == len(letters) != ours["lm_head.weight"].shape[0]


def test_ctc_kd_follows_the_teachers_frames(distil):
    _, losses, said = distil("ctc_kd", *TEACHER)
    assert "soft" in losses[0] and "train-teacher step 2/2" in said


def test_deepspeech_writes_characters(distil):
    model, losses, said = distil("deepspeech")
    assert json.loads((model / "rkd.json").read_text())["family"] == "deepspeech"
    assert set(losses[0]) == {"labels"} and "train-teacher" not in said
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    assert "one" not in vocabulary and {"o", "n", "e"} <= set(vocabulary)


def transcripts(model):
    """Return the one folder of transcripts beside a student's, and what it holds."""
    [file] = model.parents[2].glob("transcribe/*/transcripts-0.jsonl")
    lines = map(json.loads, file.read_text().splitlines())
    return {node.pop("id"): node for node in lines}


def test_distil_whisper_is_the_published_recipe():
    cfg = compose("distill", ["experiment=distil_whisper"])
    trainer, terms = cfg.trainer, cfg.loss.terms
    assert trainer.batch_seconds * trainer.accumulate == 256 * 30 and trainer.steps * trainer.warmup == 500
    assert (trainer.learning_rate, trainer.schedule, trainer.clip_norm, trainer.steps) == (1e-4, "linear", 1, 80000)
    assert (terms.soft.weight, terms.soft.temperature, terms.soft.divergence, terms.labels.weight) == (0.8, 2, "kl", 1)
    assert (cfg.transcripts.max_wer, cfg.loss.labels, cfg.noise.operations.none) == (0.1, "teacher", 1)
    assert (cfg.transcripts.timestamps, cfg.transcripts.text_before) == (0.5, 0.2)
    assert cfg.teacher.source == cfg.student.source == "openai/whisper-large-v2"
    assert (cfg.student.decoder_layers, cfg.student.encoder_layers, trainer.freeze) == (2, None, ["encoder"])


def test_distil_whisper_takes_the_encoder_and_two_layers_and_leaves_out_what_differs(distil, models):
    teacher = whisper_folder(models / "whisper-large-v2", "v2", seed=2, decoder_layers=4)
    small = [f"teacher.source={teacher}", "trainer.batch_seconds=60", "trainer.accumulate=1",
             "student.window=trimmed", "data.n_train=12"]  # fmt: skip
    first, _, _ = distil("distil_whisper", *small, "transcripts.max_wer=null", noise=[])
    from rkd.data.store import Store
    from rkd.normalisation import normaliser
    from rkd.tokenizer import untimed
    from rkd.transcripts import wer

    [speech] = first.parents[2].glob("prepare/digits-*")
    store, told = Store.open(speech, "train"), transcripts(first)
    compared = normaliser("whisper_english")
    texts = zip(store.ids, store.texts, strict=True)
    errors = [wer(compared(text), compared(told[name]["text"])) for name, text in texts]
    limit = sorted(errors)[len(errors) // 2]
    n = sum(rate > limit for rate in errors)
    assert 0 < n < len(errors)  # random weights write more or less rubbish
    model, losses, said = distil("distil_whisper", *small, f"transcripts.max_wer={limit}", noise=[])
    assert f"left out: {n} of 12 training utterances (max_wer {n})" in said and "transcribes" not in said
    assert model != first and transcripts(model) == told
    assert set(losses[0]) == {"labels", "soft"}
    assert all(t["timed"].startswith("<|0.") and untimed(t["timed"]) == t["text"] for t in told.values())
    assert "transcripts.text_before changes nothing" in said  # each string has another voice
    ours, theirs = load_file(model / "model.safetensors"), load_file(teacher / "model.safetensors")
    encoder = [name for name in ours if ".encoder." in name]
    assert encoder and all(ours[name].equal(theirs[name]) for name in encoder)
    assert json.loads((model / "config.json").read_text())["decoder_layers"] == 2
    for ours_at, theirs_at in ((0, 0), (1, 3)):
        name = "model.decoder.layers.{}.fc1.weight"
        far = [float((ours[name.format(ours_at)] - theirs[name.format(i)]).norm()) for i in range(4)]
        assert far.index(min(far)) == theirs_at and 0 < 100 * far[theirs_at] < sorted(far)[1]


def test_distil_whisper_has_timestamps_and_is_told_what_was_said_before(distil, models, tmp_path):
    teacher = whisper_folder(models / "whisper-of-speakers", "v2", seed=2, decoder_layers=4)
    corpus = ["data=librispeech", f"data.path={corpora.librispeech(tmp_path / 'recordings')}"]
    small = [f"teacher.source={teacher}", "trainer.batch_seconds=60", "trainer.accumulate=1", "student.window=trimmed",
             "transcripts.max_wer=null"]  # fmt: skip
    first, losses, said = distil("distil_whisper", *small, corpus=corpus, noise=[])
    assert "text_before" not in said
    for key in ("timestamps", "text_before"):
        other, others, _ = distil("distil_whisper", *small, f"transcripts.{key}=0", corpus=corpus, noise=[])
        assert other != first and others[0] != losses[0]  # each changes what is learned


def test_unlabelled_learns_from_what_its_teacher_is_sure_of(distil, models, tmp_path):
    teacher = whisper_folder(models / "repeats-itself", "v2", seed=2, decoder_layers=4)
    root = corpora.librispeech(tmp_path / "recordings", text=False)
    for i, file in enumerate(sorted(root.rglob("*.flac"))):
        save(file, seconds=0.2 + 0.05 * i, hz=100 * (i + 1))
    corpus = ["data=librispeech", f"data.path={root}", f"student.source={models / 'whisper-tiny'}",
              f"teacher.source={teacher}"]  # fmt: skip
    off = ["transcripts.max_characters_per_second=null", "transcripts.min_words=null"]
    everything = ["transcripts.max_compression=null", "transcripts.min_confidence=null"]
    first, losses, _ = distil("unlabelled", *off, *everything, corpus=corpus)
    told = [node for name, node in transcripts(first).items() if name.startswith(("1-", "2-"))]  # the training's
    assert len(told) == 6 and set(losses[0]) == {"labels", "soft"}
    sure, ratios = [node["confidence"] for node in told], [compression_ratio(node["text"]) for node in told]
    least, most = sorted(sure)[1], sorted(ratios)[3]
    left_out = [s < least or r > most for s, r in zip(sure, ratios, strict=True)]
    counts = f"min_confidence {sum(s < least for s in sure)}, max_compression {sum(r > most for r in ratios)}"
    assert max(ratios) > most and 1 <= sum(left_out) < 6  # it repeats itself the more often, the longer it hears
    limits = [f"transcripts.min_confidence={least}", f"transcripts.max_compression={most}"]
    _, _, said = distil("unlabelled", *off, *limits, corpus=corpus)
    assert f"left out: {sum(left_out)} of 6 training utterances ({counts})" in said and "transcribes" not in said
    nothing = ["distill", "experiment=[unlabelled,smoke]", *corpus, *WHITE, *SMALL, "transcripts.min_confidence=0"]
    assert main(nothing) == 3


def weights_after(monkeypatch, steps):
    """Keep what a training saves after some of its steps: a dictionary of its weights by step, filled as it runs."""
    kept, save = {}, checkpoint.save

    def keep(folder, state):
        if folder.name == "last" and state["step"] in steps:
            kept[state["step"]] = {name: value.clone() for name, value in state["objective"].items()}
        save(folder, state)

    monkeypatch.setattr(checkpoint, "save", keep)
    return kept


def test_noise_robust_whisper_trains_its_denoiser_and_then_both(distil, models, monkeypatch, capsys):
    """Phase 1 leaves the recogniser's bytes alone, phase 2 changes them; the result is a plain Whisper's folder."""
    source = models / "whisper-tiny"
    chosen = ["student=whisper-tiny", f"student.source={source}", "trainer.steps=10", "trainer.validate_every=3"]
    kept = weights_after(monkeypatch, (3, 10))
    model, losses, said = distil("noise_robust_whisper", *chosen)
    assert set(losses[0]) == {"labels", "denoising"} and "train-teacher" not in said
    pretrained = load_file(source / "model.safetensors")
    recogniser, denoiser = "student.recogniser.hf.", "student.denoiser."
    for name, value in pretrained.items():
        assert kept[3][recogniser + name].equal(value), name
    assert any(not kept[10][recogniser + name].equal(value) for name, value in pretrained.items())
    assert any(not kept[3][name].equal(kept[10][name]) for name in kept[3] if name.startswith(denoiser))
    assert changed(source, model / "recogniser")

    assert not main(
        ["evaluate", "experiment=[noise_robust_whisper,smoke]", *SMALL, "log_every=1", *chosen, "trainer.steps=4"]
    )
    results = json.loads((model.parents[3] / capsys.readouterr().out.strip() / "results.json").read_text())
    student, padded = results["systems"]
    assert padded["name"] == f"{student['name']}, padded to 30 s"
    for system in (student, padded):
        heard = [c for c in system["conditions"] if c["condition"] == "noise"]
        assert system["family"] == "mask + hubwhisper"
        assert heard and all(c["wer"] is not None and c["denoised_si_sdr"] is not None for c in heard)

    from transformers import WhisperForConditionalGeneration, pipeline

    loaded, info = WhisperForConditionalGeneration.from_pretrained(model / "recogniser", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    best = checkpoint.load(model.parent / "checkpoints/best")["student"]
    assert all(loaded.state_dict()[name].equal(best["recogniser.hf." + name]) for name in pretrained)
    x_T = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    asr = pipeline("automatic-speech-recognition", model=str(model / "recogniser"), device="cpu")
    written = asr({"raw": x_T, "sampling_rate": 16000}, generate_kwargs={"max_new_tokens": 8})["text"]
    assert isinstance(written, str) and written.strip()


def test_noise_robust_whisper_in_its_embedded_form(distil):
    model, losses, _ = distil("noise_robust_whisper")
    card = json.loads((model / "rkd.json").read_text())
    assert (card["family"], card["recogniser"]["family"]) == ("enhanced", "whisper")
    assert set(losses[0]) == {"labels", "ctc", "denoising"}


def test_adversarial_trains_on_what_is_perturbed_against_the_student(distil, monkeypatch):
    from rkd.losses import FGSM, VAT

    levels_db = {FGSM: [], VAT: []}

    def measure(kind, perturbed):
        def measured(term, student, batch):
            heard_BT = perturbed(term, student, batch)
            r_BT = heard_BT - batch.noisy_BT
            valid_BT = torch.arange(r_BT.shape[1]) < batch.speech_lengths_B[:, None]
            speech_B = (batch.noisy_BT * valid_BT).norm(dim=1)
            # The one sets every sample's amplitude, but where the gradient is zero, the other the whole.
            size_B = r_BT.abs().amax(1) * batch.speech_lengths_B.sqrt() if kind is FGSM else r_BT.norm(dim=1)
            levels_db[kind] += (20 * (speech_B / size_B).log10()).tolist()
            return heard_BT

        return measured

    for kind in levels_db:
        monkeypatch.setattr(kind, "perturbed", measure(kind, kind.perturbed))
    _, losses, said = distil("adversarial", "loss.terms.vat.snr_db=24", "student=ctc_tiny")
    assert set(losses[0]) == {"labels", "fgsm", "vat"} and "train-teacher" not in said
    assert all(step["fgsm"] != step["labels"] and step["vat"] > 0 for step in losses)
    assert levels_db[FGSM] == pytest.approx([30.0] * len(levels_db[FGSM]), abs=0.01)
    assert levels_db[VAT] == pytest.approx([24.0] * len(levels_db[VAT]), abs=0.01)
    assert len(levels_db[FGSM]) == len(levels_db[VAT]) > 24


HALF = ["teacher.encoder_layers=4", "student.encoder_layers=2", "trainer.steps=5", "trainer.validate_every=2", *TEACHER]


def test_half_encoder_trains_the_teachers_outer_layers_alone_at_first(distil, monkeypatch):
    from rkd.losses import Hidden
    from rkd.models.whisper import Whisper

    started, bound = {}, []

    def start_from(student, teacher, encoder_from, decoder_from):
        own_start(student, teacher, encoder_from, decoder_from)
        started.update({name: value.clone() for name, value in student.state_dict().items()})
        started["teacher"] = {name: value.clone() for name, value in teacher.state_dict().items()}

    def bind(term, student, teacher):
        own_bind(term, student, teacher)
        bound.append((term.pairs, len(term.projections)))

    own_start, own_bind = Whisper.start_from, Hidden.bind
    monkeypatch.setattr(Whisper, "start_from", start_from)
    monkeypatch.setattr(Hidden, "bind", bind)
    kept = weights_after(monkeypatch, (2, 5))
    _, losses, _ = distil("half_encoder", *HALF)
    teacher = started.pop("teacher")
    for ours, theirs in ((0, 0), (1, 3)):
        names = [name for name in started if f"encoder.layers.{ours}." in name]
        assert names
        for name in names:
            assert started[name].equal(teacher[name.replace(f"layers.{ours}.", f"layers.{theirs}.")])
    assert bound == [([(1, 1), (2, 4)], 0)]  # each follows the layer that it was; of equal width, without projections
    assert set(losses[0]) == {"labels", "ctc", "soft", "hidden"}
    moved = [
        {name for name in started if not before[name].equal(after[name])}
        for before, after in ((started, student_of(kept[2])), (student_of(kept[2]), student_of(kept[5])))
    ]
    assert moved[0] and all(".encoder." in name for name in moved[0])
    assert any(".decoder." in name for name in moved[1]) and any(".encoder." in name for name in moved[1])


def student_of(objective):
    """Return a saved objective's weights of the student."""
    return {name.removeprefix("student."): v for name, v in objective.items() if name.startswith("student.")}


def test_half_encoder_of_less_width_starts_anew_and_learns_projections(distil):
    model, losses, _ = distil(
        "half_encoder", *HALF, "student=tiny", "student.init=random", "loss.terms.hidden.distance=l1_cosine"
    )
    config = json.loads((model / "config.json").read_text())
    assert (config["d_model"], config["encoder_layers"]) == (64, 2) and losses[0]["hidden"] > 0
    saved = checkpoint.load(model.parent / "checkpoints/last")["objective"]
    assert {v.shape for k, v in saved.items() if "projections" in k and k.endswith("weight")} == {(128, 64)}
