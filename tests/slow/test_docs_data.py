"""Every command of docs/data.md runs, in its smallest form, on small copies of the corpora."""

import json
import re
import shlex
from pathlib import Path

import corpora
import pytest
from recordings import save

from rkd import stages
from rkd.config import compose
from rkd.config.folders import group_files

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
COMMANDS = re.findall(r"^rkd .+$", PAGE, re.MULTILINE)
FILES = re.findall(r"```\w+\n# (\S+/\S+)\n(.*?)```", PAGE, re.DOTALL)
EVEN = "data.fractions=[0.4,0.3,0.3]"  # so that a few recordings fill every split
SMALL = {
    "digits": ["data.n_train=6", "data.n_validation=3", "data.n_test=3"],
    "fsdd": ["data.n_train=6", "data.n_validation=3", "data.n_test=3"],
    "ljspeech": [EVEN], "folder": [EVEN], "manifest": [EVEN], "librispeech": [EVEN],
    "hub": [EVEN],
    "fsdd_digits": ["data.sources.fsdd.n_train=12", "data.sources.digits.n_train=12",
                    "data.sources.fsdd.test_speakers=[bob]"],
}  # fmt: skip
TRAINING = ["student=ctc_tiny", "noise=white", "noise@teacher.noise=white", "trainer.steps=2",
            "trainer.batch_seconds=12",
            "trainer.validate_every=2", "trainer.validate_utterances=4", "teacher.trainer.steps=2",
            "teacher.trainer.batch_seconds=12", "teacher.trainer.validate_every=2",
            "teacher.trainer.validate_utterances=4", "device=cpu", "prepare_workers=1"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What stands for /data in the page."""
    folder = tmp_path_factory.mktemp("data")
    corpora.librispeech(folder / "LibriSpeech", ["train-clean-100", "dev-clean", "test-clean"])
    corpora.librispeech(folder / "unlabelled", ["train-a", "dev-a", "test-a"], text=False)
    corpora.ljspeech(folder / "LJSpeech-1.1")
    corpora.common_voice(folder / "cv-corpus/tr")
    save(folder / "cv-corpus/tr/clips/common_voice_d.mp3", seconds=0.3)
    corpora.voicebank(folder / "VoiceBank-DEMAND")
    corpora.fsdd(folder / "fsdd")
    (folder / "saved").symlink_to(corpora.hub(folder / "hub") / "disk")
    rows = ["audio,text,speaker,split"]
    for i in range(30):
        save(folder / f"recordings/s{i % 10}/{i}.wav", f"word {i % 3}", seconds=0.3)
        rows.append(f"recordings/s{i % 10}/{i}.wav,word {i % 3},s{i % 10},{('train', 'dev', 'test')[i % 3]}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    header, *lines = [row.split(",") for row in rows]
    objects = [json.dumps(dict(zip(header, line, strict=True))) for line in lines]
    (folder / "list.jsonl").write_text("\n".join(objects))
    for name, text in FILES:
        path = folder / "user" / name
        path.parent.mkdir(parents=True)
        path.write_text(text.replace("/data/", f"{folder}/"))
    words = [
        "data=folder",
        f"data.path={folder}/recordings",
        EVEN,
        "teacher=ctc_tiny",
        f"root={folder}/runs",
        *TRAINING,
    ]
    teacher = stages.run("train-teacher", compose("train-teacher", words), words)
    (folder / "teacher").symlink_to(teacher)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command, data, monkeypatch):
    monkeypatch.setenv("RKD_CONF", str(data / "user/my_conf"))
    _, stage, *overrides = shlex.split(command.replace("/data/", f"{data}/"), comments=True)
    given = {word.partition("=")[0] for word in overrides}
    name = next((word.removeprefix("data=") for word in overrides if word.startswith("data=")), "digits")
    small = [word for word in SMALL.get(name, []) if word.partition("=")[0] not in given]
    if "data.n_train=20000" in overrides:
        small, overrides = SMALL["digits"], [word for word in overrides if word != "data.n_train=20000"]
    overrides += [f"root={data}/runs", *small, *TRAINING]
    folder = stages.run(stage, compose(stage, overrides), overrides)
    assert folder.parent.name == stage
    assert (folder / ("part-00000.arrow" if stage == "prepare" else "model")).exists()
    assert '"state": "done"' in (folder / "status.json").read_text()


def test_every_corpus_is_on_the_page():
    chosen = {word.removeprefix("data=") for c in COMMANDS for word in c.split() if word.startswith("data=")}
    assert set(group_files("data")) <= chosen
