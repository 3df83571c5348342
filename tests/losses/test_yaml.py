"""The YAML of losses and of models says what their classes need, take and provide."""

from inspect import signature

import numpy as np
import pytest
import torch

from rkd import config
from rkd.config.checks import NOT_ARGUMENTS
from rkd.config.classes import load_class

CHOICES = [
    ("whisper", ["student=tiny", "loss=supervised"]), ("whisper", ["student=tiny", "loss=kd"]),
    ("whisper", ["student=base", "loss=kd_hidden"]), ("ctc", ["student=ctc_tiny", "loss=supervised",
    "~loss.terms.ctc"]),
    ("ctc", ["student=ctc_tiny", "loss=kd"]), ("ctc", ["student=ctc_small", "loss=kd_hidden"]),
    ("whisper", ["loss=kd_hidden", "loss.terms.hidden.part=decoder"]), ("whisper", ["loss=kd_attention"]),
    ("whisper", ["loss=kd_attention", "loss.terms.attention.part=cross"]), ("ctc", ["student=ctc_tiny",
    "loss=kd_attention"]), ("whisper", ["loss=kd_relations", "loss.terms.relations.part=decoder"]),
    ("whisper", ["denoiser=mask", "loss=denoise", "denoiser@teacher.denoiser=mask", "loss@teacher.loss=denoise"]),
    ("ctc", ["student=ctc_tiny", "denoiser=mask", "loss=denoise", "loss.terms.denoising._target_=rkd.losses.SISDR"]),
    ("whisper", ["loss=consistency"]), ("ctc", ["student=ctc_tiny", "loss=consistency"]),
    ("whisper", ["loss=adversarial"]), ("ctc", ["student=ctc_tiny", "loss=adversarial"]),
]  # fmt: skip


@pytest.mark.parametrize("family, overrides", CHOICES)
def test_yaml_says_what_the_classes_need(family, overrides):
    cfg = config.compose("distill", overrides)
    for terms in (cfg.loss.terms, cfg.teacher.loss.terms):
        for name, node in terms.items():
            arguments = {k: v for k, v in node.items() if k not in NOT_ARGUMENTS["loss"]}
            term = config.instantiate(arguments, [])
            # Every argument stands in the YAML, so that it can be set; label smoothing is for those who add it.
            assert set(signature(type(term)).parameters) - set(arguments) <= {"label_smoothing", "args", "kwargs"}
            assert tuple(node.needs) == term.needs, name
            assert tuple(node.get("teacher", ())) == term.teacher, name


@pytest.mark.parametrize("group", ["student", "teacher"])
@pytest.mark.parametrize("choice", config.folders.group_files("student"))
def test_yaml_says_what_the_models_provide(group, choice, tokenizer, make_batches, pretrained_folders):
    from rkd import assemble

    cfg = config.compose("distill", [f"student={choice}", f"teacher={choice}"])
    node = dict(cfg[group])
    if "source" in node:
        folder = pretrained_folders[node["model_types"][0]]
        model = assemble.hub_model(node, cfg.denoiser, folder, group == "teacher", None, "", []).eval()
    else:
        model = assemble.new_model(node, cfg.denoiser, tokenizer, 2, []).eval()
    for prefix in node["provides"]:
        if prefix.startswith("attention."):
            model.provide_attention(prefix.removeprefix("attention."))
    batch = make_batches().collate(0, np.arange(2))
    with torch.no_grad():
        streams = model(batch.clean_BT, batch.lengths_B, batch.labels_BL)
    given = {name.rpartition(".")[0] if "." in name else name for name in streams}
    assert given == set(node["provides"]) and node["output"] in given
    assert isinstance(model, load_class(node["_target_"], []))
    assert type(model).__name__.lower() == node["family"]
    for key in ("soft_loss", "label_loss"):
        assert load_class(node[key], []).needs == (node["output"],)


@pytest.mark.parametrize("choice", ["tiny", "ctc_tiny", "deepspeech", "mfccnet", "whisper-tiny", "wav2vec2-base-960h"])
def test_dropout_is_a_key_of_every_model(choice, tokenizer, make_batches, pretrained_folders):
    """And acts in training alone."""
    from rkd import assemble

    cfg = config.compose("distill", [f"student={choice}", "student.dropout=0.5"])
    node, batch = dict(cfg.student), make_batches().collate(0, np.arange(2))
    if "source" in node:
        folder = pretrained_folders[node["model_types"][0]]
        model = assemble.hub_model(node, cfg.denoiser, folder, True, None, "", [])
        settings = model.hf.config.to_dict()  # there are layers that are dropped, too
        assert settings.get("hidden_dropout", settings.get("dropout")) == 0.5
    else:
        model = assemble.new_model(node, cfg.denoiser, tokenizer, 2, [])

    def difference():
        with torch.no_grad():
            streams = [model(batch.clean_BT, batch.lengths_B, batch.labels_BL)[node["output"]] for _ in range(2)]
        one, two = (stream.values_BND[stream.mask()] for stream in streams)
        return (one - two).abs().max()

    model.eval()
    assert difference() == 0
    model.train()
    assert difference() > 1e-2
