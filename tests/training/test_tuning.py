"""Patterns, layers from the top down, and adapters that merge into what they adapted."""

import pytest
import torch

from rkd.errors import ConfigError
from rkd.models.mfccnet import MFCCNet
from rkd.training.tuning import attach_adapters, heights, matching, parameter_groups, unfrozen

NAMES = ["hf.model.encoder.conv1.weight", "hf.model.encoder.layers.0.fc1.weight", "hf.model.encoder.layers.11.fc1.bias",
         "hf.model.decoder.embed_tokens.weight", "hf.model.decoder.layers.0.fc1.weight", "ctc_head.weight"]  # fmt: skip


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("encoder", [0, 1, 2]), ("encoder.layers", [1, 2]), ("encoder.layers.[0-3]", [1]), ("layers.0", [1, 4]),
        ("bias", [2]), ("embed_*", [3]), ("decoder.layers.*.fc1", [4]), ("hf", [0, 1, 2, 3, 4]), ("*head", [5]),
    ],
)  # fmt: skip
def test_patterns(pattern, expected):
    assert matching(NAMES, [pattern], "trainer.freeze") == {NAMES[i] for i in expected}


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"trainer.freeze=\[enc\] .*ctc_head, decoder"):
        matching(NAMES, ["decoder", "enc"], "trainer.freeze")


def test_heights():
    height = heights(NAMES)
    assert [height[name] for name in NAMES] == [0, 1, 12, 14, 13, 14]
    assert unfrozen(NAMES, 0) == {NAMES[3], NAMES[5]} and unfrozen(NAMES, 1) == {NAMES[3], NAMES[4], NAMES[5]}
    assert unfrozen(NAMES, 100) == set(NAMES)


def test_every_family_has_a_front_layers_and_a_top(make_whisper, make_ctc):
    for model, depth in ((make_whisper(), 3), (make_ctc(), 2)):
        height = heights(name for name, p in model.named_parameters() if p.requires_grad)
        assert set(height.values()) == set(range(depth + 2))


def test_parameter_groups(make_whisper):
    model = make_whisper()
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    assert all((group["weight_decay"] == 0.1) == (p.ndim > 1) for group in groups for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    rate = {id(p): group["rate"] for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert rate[id(names["hf.model.decoder.embed_tokens.weight"])] == 1.0
    assert rate[id(names["hf.model.decoder.layers.0.fc1.weight"])] == 0.5
    assert rate[id(names["hf.model.encoder.layers.0.fc1.weight"])] == 0.5**3
    assert rate[id(names["hf.model.encoder.conv1.bias"])] == 0.5**4
    assert {group["rate"] for group in parameter_groups(model, 0.1)} == {1.0}


@pytest.mark.parametrize(
    "family, targets",
    [("whisper", ["q_proj", "v_proj"]), ("ctc", ["q_proj", "v_proj"]), ("mfccnet", ["conv"])],
)
def test_adapters_train_little_and_merge_to_the_same_output(
    make_whisper, make_ctc, make_batches, tokenizer, family, targets
):
    make = {
        "whisper": lambda: make_whisper(d_model=64, ffn=256), "ctc": lambda: make_ctc(d_model=64, ffn=256),
        "mfccnet": lambda: MFCCNet(tokenizer, 2, 64, 2, 7, 20, 40, 256, 0.0),
    }  # fmt: skip
    model = make[family]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    n_parameters = sum(p.numel() for p in model.parameters())
    handle = attach_adapters(model, {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": targets})
    trained = [p for p in model.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < 0.05 * n_parameters
    batch = make_batches().collate(0, range(3))
    outputs = {}
    for name in ("fresh", "trained", "merged"):
        if name == "trained":
            for p in trained:
                torch.nn.init.normal_(p, std=0.2)
        if name == "merged":
            assert handle.merge_and_unload() is model
        with torch.no_grad():
            streams = model.eval()(batch.clean_BT, batch.lengths_B, batch.labels_BL)
        outputs[name] = streams["ctc_logits"].values_BND
    assert not torch.allclose(outputs["fresh"], outputs["trained"], atol=1e-2)
    assert torch.allclose(outputs["trained"], outputs["merged"], atol=1e-4)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = tuple(f".{target}.weight" for target in targets)
    assert after.keys() == before.keys() and changed == {n for n in before if n.endswith(adapted)}


def test_adapters_leave_a_fresh_layer_trainable_and_refuse_other_names(make_ctc):
    adapters = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj"]}
    model = make_ctc()
    attach_adapters(model, adapters, also=("head.weight",))
    assert {n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n} == {"head.weight"}
    with pytest.raises(ConfigError, match=r"trainer.adapters.targets=\['query'\] .*fc1"):
        attach_adapters(make_ctc(), adapters | {"targets": ["query"]})
