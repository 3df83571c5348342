"""What a user adds: a loss term, a noise type, a model family; each a class in a package and a YAML in a folder."""

import json
import sys

import pytest

from rkd import stages
from rkd.assemble import saved_model
from rkd.config import compose
from rkd.errors import ConfigError

LOSS = '''
from rkd.losses import Term


class LogitDistance(Term):
    """Mean squared distance of the logits on label tokens."""

    needs = ("ctc_logits",)
    teacher = ("ctc_logits",)

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, student, teacher, batch):
        ours, theirs = student["ctc_logits"], teacher["ctc_logits"]
        valid = ours.mask()
        return self.scale * ((ours.values_BND[valid] - theirs.values_BND[valid]) ** 2).mean(-1).sum()
'''

LOSS_YAML = """\
# rkd distill loss=distance
defaults: [_common, _self_]
terms:
  distance: {_target_: my_rkd.loss.LogitDistance, needs: [ctc_logits], teacher: [ctc_logits], scale: 0.5, weight: 1.0}
"""

NOISE = '''
import torch


class Clicks:
    """A click at random points of a clip."""

    def __init__(self, per_second: float):
        self.per_second = per_second

    def load(self, resources):
        self.device = resources.device

    def sample(self, draws, lengths_B, speakers, n):
        noise_BT = torch.zeros(len(draws), n, device=self.device)
        for row, length in enumerate(lengths_B):
            for k in range(max(1, int(self.per_second * length / 16000))):
                noise_BT[row, int(draws.uniform(f"clicks.{k}")[row] * length)] = 1.0
        return noise_BT
'''

NOISE_YAML = """\
# rkd distill noise=clicks
defaults: [_common, _self_]
types:
  clicks: {_target_: my_rkd.noise.Clicks, per_second: 5, weight: 1.0}
"""

MODEL = '''
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rkd.features import LogMel
from rkd.models.base import Stream
from rkd.models.framewise import collapse
from rkd.tokenizer import decode, load_tokenizer


class Convolutions(nn.Module):
    """A CTC recogniser of plain convolutions."""

    def __init__(self, tokenizer, window_seconds, channels):
        super().__init__()
        self.tokenizer, self.window_seconds, self.shape = tokenizer, window_seconds, {"channels": channels}
        self.depth, self.width = {"encoder": 0}, channels
        self.features = LogMel(20, 320)
        self.layers = nn.Sequential(nn.Conv1d(20, channels, 1), nn.ReLU(), nn.Conv1d(channels, len(tokenizer), 1))

    def forward(self, waveform_BT, lengths_B, labels_BL):
        mel_BMF, frames_B = self.features(waveform_BT, lengths_B)
        return {"ctc_logits": Stream(self.layers(mel_BMF).transpose(1, 2), frames_B, 320)}

    @torch.no_grad()
    def write(self, waveform_BT, lengths_B, beams=1):
        stream = self(waveform_BT, lengths_B, None)["ctc_logits"]
        paths = [row[:n].argmax(-1).tolist() for row, n in zip(stream.values_BND, stream.lengths_B.tolist())]
        return [collapse(path, self.tokenizer.pad_token_id) for path in paths]

    def transcribe(self, waveform_BT, lengths_B, beams=1):
        return [decode(self.tokenizer, tokens) for tokens in self.write(waveform_BT, lengths_B, beams)]

    def save(self, folder):
        self.tokenizer.save_pretrained(folder)
        save_file(self.state_dict(), folder / "weights.safetensors")

    @classmethod
    def load(cls, folder, card):
        model = cls(load_tokenizer(folder), card["window_seconds"], **card["shape"])
        model.load_state_dict(load_file(folder / "weights.safetensors"))
        return model
'''

MODEL_YAML = """\
# rkd distill student=convolutions
defaults:
  - _init
  - _self_
  - override /teacher@_global_.teacher: ctc_tiny
_target_: my_rkd.model.Convolutions
family: convolutions
name: convolutions
output: ctc_logits
provides: [ctc_logits]
soft_loss: rkd.losses.SoftFrames
label_loss: rkd.losses.CTC
ctc_weight: 0.0
channels: 24
"""

SMALL = ["data.n_train=24", "data.n_validation=6", "data.n_test=6", "data.length=[1,3]", "trainer.steps=3",
         "trainer.batch_seconds=12", "trainer.validate_every=3", "trainer.validate_utterances=4", "trainer.clean=0",
         *(f"teacher.trainer.{x}" for x in ("steps=2", "batch_seconds=12", "validate_every=2",
         "validate_utterances=4")),
         "evaluate.snr=[5]", "evaluate.quality_utterances=0", "log_every=1", "device=cpu"]  # fmt: skip


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's package beside a folder of YAML files."""
    for name, source in (("loss", LOSS), ("noise", NOISE), ("model", MODEL)):
        path = tmp_path / "my_rkd" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    (tmp_path / "my_rkd" / "__init__.py").write_text("")
    for name, text in (
        ("loss/distance", LOSS_YAML),
        ("noise/clicks", NOISE_YAML),
        ("student/convolutions", MODEL_YAML),
    ):
        path = tmp_path / "my_conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("RKD_CONF", str(tmp_path / "my_conf"))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_rkd"]:
        del sys.modules[name]


CHOICES = {"loss": ["loss=distance", "student=ctc_tiny", "teacher=ctc_tiny"], "noise": ["noise=clicks"],
           "student": ["student=convolutions"]}  # fmt: skip


@pytest.mark.parametrize("group", CHOICES)
def test_it_is_composed_and_has_to_be_trusted(package, group):
    cfg = compose("distill", [*CHOICES[group], "trust=[my_rkd]"])
    assert "my_rkd" in str(cfg[group])
    with pytest.raises(ConfigError, match=r"add trust=\[my_rkd\]"):
        compose("distill", CHOICES[group])


@pytest.mark.parametrize(
    "override, message",
    [
        ("loss.terms.distance.scales=2", "scales"),
        ("+loss.terms.distance.temperature=2", "has no argument temperature; it takes scale"),
        ("loss.terms.distance._target_=my_rkd.loss.LogitDistances", "nearest: my_rkd.loss.LogitDistance"),
        ("loss.terms.distance.needs=[logits]", "provides ctc_logits"),
    ],
)
def test_its_mistakes_are_named(package, override, message):
    with pytest.raises(ConfigError, match=message):
        compose("distill", [*CHOICES["loss"], "trust=[my_rkd]", override])


def run(package, stage, *overrides):
    overrides = [*overrides, "trust=[my_rkd]", f"root={package}/runs", *SMALL]
    return stages.run(stage, compose(stage, overrides), overrides)


@pytest.mark.slow
def test_a_loss_term_runs(package):
    folder = run(package, "distill", *CHOICES["loss"], "noise=white")
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"]["distance"] for step in steps if "loss" in step]
    assert len(losses) == 3 and all(value > 0 for value in losses) and len(set(losses)) == 3


@pytest.mark.slow
def test_a_noise_type_runs(package):
    folder = run(package, "evaluate", *CHOICES["noise"], "student=tiny", "teacher=tiny", "loss=supervised")
    results = json.loads((folder / "results.json").read_text())
    conditions = [(c["condition"], c["noise"], c["seen"]) for c in results["systems"][0]["conditions"]]
    assert ("noise", "clicks", True) in conditions


@pytest.mark.slow
def test_a_model_family_runs(package):
    folder = run(package, "evaluate", *CHOICES["student"], "noise=white")
    systems = {s["role"]: s for s in json.loads((folder / "results.json").read_text())["systems"]}
    assert systems["student"]["family"] == "convolutions" and systems["teacher"]["family"] == "ctc"
    # Two convolutions of width 1: 20 x 24 + 24 and 24 x V + V, with the V = 14 tokens of ten digits.
    assert systems["student"]["params"] == 20 * 24 + 24 + 24 * 14 + 14
    student = next((package / "runs" / "distill").iterdir())
    assert saved_model(student, compose("evaluate", ["trust=[my_rkd]"])).width == 24  # whatever is chosen now
    heard = [c for c in systems["student"]["conditions"] if c["condition"] != "noise only"]
    assert heard and all(c["wer"] >= 0 and c["n_words"] > 0 for c in heard)
