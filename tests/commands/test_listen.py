"""`rkd listen`: what is written is what the training hears, under names that say what it is."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from rkd import assemble
from rkd.config import compose
from rkd.data.batches import Batches
from rkd.data.store import Store
from rkd.stages.plan import Plan


@pytest.fixture(autouse=True)
def work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def of_the_training(overrides, split):
    """Return what a training mixes in its first epoch, by utterance id, as `rkd.stages.training.fit` does it."""
    plan = Plan(OmegaConf.to_container(compose("distill", overrides)), "distill")
    cfg = plan.cfg
    store = Store.open(plan.speech.folder, split)
    banks, rooms = plan.bank_folders(cfg["noise"]["types"]), plan.room_folder(cfg["noise"]["rooms"], cfg["noise"])
    how = assemble.corruption(cfg["noise"], store, split, banks, rooms, torch.device("cpu"), [])
    batches = Batches(store, None, cfg["trainer"]["batch_seconds"], cfg["seed"], cfg["trainer"]["silence"], 4.0)
    heard = {}
    for index in batches.epoch(0):
        batch = assemble.corrupt(batches.collate(0, index), how)
        for row, (name, n) in enumerate(zip(batch.ids, batch.speech_lengths_B.tolist(), strict=True)):
            heard[name] = (batch.clean_BT[row, :n].numpy(), batch.noisy_BT[row, :n].numpy())
    return heard


@pytest.mark.parametrize("more", [[], ["noise.snr_range=[-5,5]", "noise.order=noise_then_reverb", "seed=3"]])
def test_the_clips_are_what_the_training_mixes(rkd, overrides, tmp_path, more):
    overrides = [*overrides, *more]
    said = rkd("listen", *overrides, "--clips", 10, "--out", tmp_path / "clips")
    assert said.code == 0 and said.out == f"{tmp_path}/clips\n"
    expected = of_the_training(overrides, "train")
    folders = [path for path in (tmp_path / "clips").iterdir() if path.is_dir()]
    assert len(folders) == 10
    operations = set()
    for folder in folders:
        name, operation = re.fullmatch(
            r"\d+_(\d+)_(none|reverb|(?:noise|both)_recorded_-?[\d.]+dB)", folder.name
        ).groups()
        operations.add(operation.partition("_")[0])
        for kind, wanted_T in zip(("clean", "noisy"), expected[name], strict=True):
            x_T, rate_hz = soundfile.read(folder / f"{kind}.wav")
            assert rate_hz == 16000 and np.abs(x_T - wanted_T).max() < 1.5 / 32768
    assert len(operations) >= 3
    page = (tmp_path / "clips" / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 21 and all((tmp_path / "clips" / source).stat().st_size for source in sources)
    assert (tmp_path / "clips" / "spectrograms.png").read_bytes().startswith(b"\x89PNG")


def test_a_models_denoiser_is_heard(rkd, overrides, tmp_path, make_ctc):
    from rkd.models import save_model
    from rkd.models.denoisers.mask import MaskDenoiser
    from rkd.models.enhanced import Enhanced

    worn = Enhanced(make_ctc(), MaskDenoiser("convolutional", width=8, layers=2).eval(), 1.0)
    save_model(worn, "ctc", tmp_path / "worn")
    save_model(make_ctc(), "ctc", tmp_path / "bare")
    clips = tmp_path / "clips"
    said = rkd("listen", *overrides, "--clips", 2, "--model", tmp_path / "worn", "--out", clips)
    assert said.code == 0, said.err
    for folder in (path for path in clips.iterdir() if path.is_dir()):
        noisy_T, _ = soundfile.read(folder / "noisy.wav", dtype="float32")
        with torch.no_grad():
            expected_BT = worn.denoiser(torch.from_numpy(noisy_T)[None], torch.tensor([len(noisy_T)]))
        found_T, _ = soundfile.read(folder / "denoised.wav", dtype="float32")
        assert np.abs(found_T - expected_BT[0].numpy()).max() < 1e-3
    page = (clips / "index.html").read_text()
    assert page.count("denoised.wav") == 2 and "<th>denoised</th>" in page
    refused = rkd("listen", *overrides, "--clips", 1, "--model", tmp_path / "bare")
    assert refused.code == 2 and "wears no denoiser" in refused.err
    own = [rkd("listen", *overrides, "--clips", 1, *more).out for more in ([], ["--model", tmp_path / "worn"])]
    assert own[0] != own[1]


def test_it_prepares_what_is_missing_once_and_names_its_folder_by_what_it_holds(rkd, overrides):
    first = rkd("listen", *overrides, "--clips", 2)
    folder = Path(first.out.strip())
    assert "to build" in first.err and folder.parent.name == "listen" and folder.name.startswith("folder-train-")
    again = rkd("listen", *overrides, "--clips", 2)
    assert again.out == first.out and "to build" not in again.err
    others = [["--split", "test"], ["--clips", "3"], ["noise.snr=[3]"], ["seed=1"]]
    assert len({rkd("listen", *overrides, "--clips", 2, *other).out for other in others} | {first.out}) == 5


def test_no_more_clips_than_there_are(rkd, overrides, tmp_path):
    rkd("listen", *overrides, "--split", "validation", "--clips", 200, "--out", tmp_path / "clips")
    store = Store.open(next((tmp_path / "runs/prepare").glob("folder-*")), "validation")
    assert len(list((tmp_path / "clips").glob("*/noisy.wav"))) == len(store)


def test_the_users_folder_is_heard(rkd, overrides, tmp_path, monkeypatch):
    (tmp_path / "conf" / "noise").mkdir(parents=True)
    (tmp_path / "conf" / "noise" / "hum.yaml").write_text(
        "defaults: [_common, _self_]\noperations: {none: 0, noise: 1}\nsnr: [-3.5]\n"
        "types:\n  hum: {_target_: rkd.noise.Coloured, db_per_octave: -9, weight: 1}\n"
    )
    monkeypatch.setenv("RKD_CONF", str(tmp_path / "conf"))
    own = [
        override for override in overrides if not override.startswith("noise=") and not override.startswith("noise.")
    ]
    said = rkd("listen", *own, "noise=hum", "--clips", 2)
    assert {path.name.partition("_noise_")[2] for path in Path(said.out.strip()).glob("*_*")} == {"hum_-3.5dB"}


@pytest.mark.parametrize(
    "arguments, code, part",
    [
        (["--clip", "3"], 2, "unknown option --clip; nearest: --clips"),
        (["--clips", "0"], 2, "0 is not a whole number from 1 to 200"),
        (["--clips", "many"], 2, "many is not a whole number"),
        (["--split", "tset"], 2, "nearest: test"),
        (["--out"], 2, "expected one argument"),
        (["noise=wite"], 2, "nearest: white"),
        (["data=folder", "data.path=nowhere"], 3, "nowhere"),
        (["build=never"], 2, "build=never"),
    ],
)
def test_a_wrong_call_says_what_would_be_right(rkd, arguments, code, part):
    said = rkd("listen", *arguments)
    assert said.code == code and said.out == "" and part in said.err


def test_a_place_that_cannot_be_written(rkd, overrides, tmp_path, locked):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", locked / "clips"):
        said = rkd("listen", *overrides, "--clips", 1, "--out", out)
        assert said.code == 5 and said.out == "" and "choose another folder with --out" in said.err


def test_noise_alone_is_told(rkd, overrides, tmp_path):
    said = rkd("listen", *overrides, "noise.only=0.5", "--clips", 12, "--out", tmp_path / "clips")
    assert said.code == 0
    alone = [path for path in (tmp_path / "clips").iterdir() if "_alone_recorded_" in path.name]
    assert 0 < len(alone) < 12
    page = (tmp_path / "clips" / "index.html").read_text()
    assert page.count(" alone recorded ") == len(alone)


def test_effects_are_told(rkd, overrides, tmp_path):
    said = rkd("listen", *overrides, "effects=telephone", "--clips", 12, "--out", tmp_path / "clips")
    assert said.code == 0
    names = [path.name for path in (tmp_path / "clips").iterdir() if path.is_dir()]
    assert 0 < sum("_mu_law" in name for name in names) < 12 and any("_band_mu_law" in name for name in names)
