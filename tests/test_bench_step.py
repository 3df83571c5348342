"""The benchmark of steps: its recipes make the same losses, its parts add up, and ways that differ are refused."""

import copy
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import step
import torch
from encoders import write_encoder
from recipes import Clock, by_hand, model_flops, recipes
from torch import nn
from whispers import make_tokenizer, write_whisper

from rkd.data.batches import Batches
from rkd.models.hub_ctc import HubCTC
from rkd.models.hub_whisper import HubWhisper
from rkd.tokenizer import encode

SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for role, width in (("student", 32), ("teacher", 48)):
        write_whisper(root / role, "tiny", False, 400, 4, **{**SMALL, "d_model": width})
    return root


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    for role, shape in (("student", "encoder-23M"), ("teacher", "encoder-95M")):
        write_encoder(
            root / role, shape, hidden_size=48, num_attention_heads=4, intermediate_size=64, conv_dim=(16,) * 7
        )
    return root


def told_by(recipe, folders, store, family=lambda folder: HubWhisper(folder, window="trimmed")):
    """Return what a few steps on real batches told."""
    teacher = family(folders / "teacher").eval()
    batches = Batches(store, [encode(teacher.tokenizer, text) for text in store.texts], 6.0, 0)

    def feed():
        for entries in batches.epoch(0):
            batch = batches.collate(0, entries)
            with torch.no_grad():
                batch.stored = [batch.through(teacher, batch.clean_BT)]
            yield batch

    clock = Clock(torch.device("cpu"), 1, 60.0, of_process=True)  # whatever else the machine does
    by_hand(recipe, folders / "student", folders / "teacher", feed(), clock)
    return clock.told()


@pytest.fixture(scope="module")
def told(folders, store):
    return {way: told_by(recipe, folders, store) for way, recipe in recipes(False).items()}


def test_each_recipe_has_one_change_more():
    ways = list(recipes(True).values())
    for before, after in itertools.pairwise(ways):
        assert sum(a != b for a, b in zip(vars(before).values(), vars(after).values(), strict=True)) == 1


def test_the_recipes_do_the_same_work(told):
    step.check(told, 1e-4)
    assert len({round(one["losses"]["soft"], 3) for one in told.values()}) == 2  # 30 s, and what there is
    for one in told.values():
        assert len(one["seconds"]) == len(one["samples"]) == 1 and one["bytes"] > 1e8
        shares = one["shares"]
        assert 0.8 < sum(shares.values()) <= 1.0 and min(shares[part] for part in ("student", "loss", "backward")) > 0


def test_the_recipes_of_encoders_do_the_same_work(encoders, store):
    ways = recipes(False, encoders=True)
    assert list(ways) == [step.OF_FRAMES, "+ fused AdamW", "+ stored targets"]
    told = {way: told_by(recipe, encoders, store, HubCTC) for way, recipe in ways.items()}
    step.check(told, 1e-4, encoders=True)
    assert all(one["losses"]["soft"] > 0 for one in told.values())
    assert HubCTC(encoders / "teacher").depth == {"encoder": 12} and HubCTC(encoders / "student").depth == {
        "encoder": 2
    }


def test_a_students_operations_are_those_of_its_shapes(folders):
    class Logits(nn.Linear):
        def forward(self, x_BD):
            return {"hidden": super().forward(x_BD)}

    assert model_flops(Logits(5, 7), torch.zeros(3, 5)) == 3 * 2 * 3 * 5 * 7
    student = HubWhisper(folders / "student", window="trimmed")
    labels_BL, n_labels, prompt = torch.zeros(1, 4, dtype=torch.long), 4, len(HubWhisper(folders / "student").prompt)
    one, two = (
        model_flops(student, torch.zeros(1, 320 * n), torch.tensor([320 * n]), labels_BL) for n in (40, 80)
    )  # encoder steps
    d, ffn, mels = 32, 64, 80
    features, convolutions = 2 * 2 * 201 * mels, 2 * 2 * 3 * mels * d + 2 * 3 * d * d
    by_step = features + convolutions + 8 * d * d + 4 * d * ffn + 4 * d * d  # the last: what the decoder looks at
    attention = 4 * d * (80**2 - 40**2) + 4 * d * 40 * (prompt + n_labels - 1)
    assert two - one == pytest.approx(3 * (40 * by_step + attention), rel=0.01)


def test_half_precision_does_the_same_work(told, folders, store):
    half = told_by(recipes(True)["+ fused AdamW"], folders, store)
    assert half["losses"] == pytest.approx(told["+ fused AdamW"]["losses"], rel=2e-2)
    assert half["losses"] != told["+ fused AdamW"]["losses"]


@pytest.mark.parametrize(
    ("way", "change", "why"),
    [
        (step.TUNED, {"losses": {"labels": 5.0, "soft": 1.0}}, "the first loss is"),
        ("+ fused AdamW", {"losses": {"labels": float("nan"), "soft": 1.0}}, "the loss is"),
        ("plain", {"samples": [4]}, "batches of"),
    ],
)
def test_a_way_that_does_other_work_is_refused(told, way, change, why):
    with pytest.raises(SystemExit, match=why):
        step.check({**told, way: {**told[way], **change}}, 1e-3)


def test_ways_of_the_whole_program_need_not_agree_in_everything(told):
    one, samples = told["plain"], [8, 7]
    ways = {way: {**one, "samples": samples, "losses": {"labels": 9.0, "soft": 1.0}} for way in step.WHOLE}
    ways["rkd distill, the student alone"]["losses"] = {"labels": 9.0}
    ways[step.STORED]["losses"]["soft"] = 0.1
    ways[step.HEARS_30_S]["losses"]["soft"] = 2.0
    ways[f"{step.STORED}, {step.OTHER_BATCHES}"] |= {"samples": [3], "losses": {"labels": 4.0, "soft": 3.0}}
    step.check(ways, 1e-3)
    ways["rkd distill, the student alone"]["losses"] = {"labels": 9.1}
    with pytest.raises(SystemExit, match="alone"):
        step.check(ways, 1e-3)


def test_ways_in_half_precision_are_compared_with_those_that_hear_the_same(told):
    """What hears 30 s has another loss than what hears the clips alone."""
    one = told["plain"]
    ways = {
        way: {**one, "losses": {"labels": 9.0 + r.trimmed, "soft": 1.0 + r.trimmed}} for way, r in recipes(True).items()
    }
    step.check(ways, 1e-3)
    ways["+ bf16 autocast"]["losses"] = {"labels": 10.0, "soft": 2.0}
    with pytest.raises(SystemExit, match="bf16 autocast"):
        step.check(ways, 1e-3)


def test_stored_targets_may_lose_and_not_gain(told):
    spoilt = copy.deepcopy(told)
    spoilt["+ stored targets"]["losses"]["soft"] *= 0.9
    step.check(spoilt, 1e-3)
    spoilt["+ stored targets"]["losses"]["soft"] *= 1.2
    with pytest.raises(SystemExit, match="stored"):
        step.check(spoilt, 1e-3)


def test_parts_exclude_each_other(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 4.0, 10.0])
    clock = Clock(torch.device("cpu"), 1, 60.0)
    monkeypatch.setattr(clock, "now", lambda: next(times))
    clock.start()
    with clock.part("student"):
        clock.of(lambda: None, "features")()
        times = iter([7.0])
    assert clock.parts == Counter(features=1.0, student=5.0)


@pytest.mark.parametrize(("of_v3", "n"), [(False, 51865), (True, 51866)])
def test_the_vocabulary_is_whispers(of_v3, n):
    tokenizer = make_tokenizer(of_v3)
    assert len(tokenizer) == n and len(encode(tokenizer, "nine one zero")) == 4
    assert tokenizer.convert_tokens_to_ids("<|startoftranscript|>") == 50258
    assert tokenizer.convert_tokens_to_ids("<|0.00|>") == n - 1501


@pytest.mark.slow
def test_the_whole_program(folders, tmp_path):
    """Through the real command, with models that are there already and small."""
    for role in ("student", "teacher"):
        (tmp_path / role).symlink_to(folders / role)
    asked = ["--batch", "12", "--seconds", "2", "3", "--repetitions", "1", "--steps", "2", "--out", str(tmp_path)]
    ways = [step.TUNED, step.STORED, f"{step.STORED}, {step.OTHER_BATCHES}", "+ stored targets"]
    script = Path(__file__).resolve().parents[1] / "scripts" / "bench" / "step.py"
    done = subprocess.run(
        [sys.executable, script, *asked, "--only", step.TUNED, "stored targets"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row[0].removeprefix("| "): row for row in (line.split(" | ") for line in done.stdout.splitlines()[2:])}
    assert rows.keys() == set(ways)
    column = done.stdout.splitlines()[0].split(" | ").index("student's TFLOP/s")
    assert {way for way, row in rows.items() if row[column]} == {way for way in ways if "rkd" in way}
    assert all(0 < float(row[column].split()[0]) < 1e3 for row in rows.values() if row[column])
    assert all(float(row[1]) > 0 and "backward" in row[-1] for row in rows.values())
    assert "mixing" in rows[step.STORED][-1] and "mixing" not in rows[step.TUNED][-1]
    assert "teacher" in rows[step.TUNED][-1] and "teacher" not in rows[step.STORED][-1]
