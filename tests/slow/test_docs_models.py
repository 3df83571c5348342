"""The commands of docs/models.md and docs/training.md run, in smoke form, on random weights as pretrained models."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from pretrained import ctc_folder, whisper_folder
from recordings import save

from rkd.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("models", "training")}
COMMANDS = {
    name: [
        shlex.split(line, comments=True)[1:]
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("rkd ")
    ]
    for name, page in PAGES.items()
}
FEW = ["data.n_train=12", "data.n_validation=3", "data.n_test=3", "data.length=[1,2]"]
SMALL = [
    "trainer.steps=2",
    "trainer.validate_every=1", "trainer.validate_utterances=2", "noise=white", "noise@teacher.noise=white",
    "evaluate=trained", "evaluate.snr=[5]", "evaluate.quality_utterances=0", "device=cpu", "root=runs",
]  # fmt: skip
TEACHER = ["teacher.trainer.steps=1", "teacher.trainer.validate_every=1", "teacher.trainer.validate_utterances=2"]
NAMES = [path.stem for path in (ROOT / "conf/shape").glob("[!_]*.yaml") if "source:" in path.read_text()]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for every pretrained choice, and one of a model that knows English alone."""
    root = tmp_path_factory.mktemp("models")
    for name in NAMES:
        kind = {"hubert-large-ls960": "hubert-large", "wavlm-base-plus": "wavlm-base"}.get(name, "wav2vec2-base")
        if "large" in name and "hubert" not in name:
            whisper_folder(root / name, "v3")
        elif "whisper" in name:
            whisper_folder(root / name, "v2")
        else:
            ctc_folder(root / name, kind)
    whisper_folder(root / "whisper-tiny.en", "en")
    for name in ("wav2vec2-base", "wavlm-base"):  # bare encoders
        ctc_folder(root / name, name)
        for file in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
            (root / name / file).unlink()
    return root


def choice_of(group, command):
    """Return what a command chooses for student or teacher, the student's default teacher included."""
    given = dict(word.split("=", 1) for word in command[1:])
    if group in given:
        return given[group]
    if group == "teacher" and (student := ROOT / "conf/student" / f"{given.get('student', 'tiny')}.yaml").exists():
        for entry in yaml.safe_load(student.read_text())["defaults"]:
            if isinstance(entry, dict) and "override /teacher@_global_.teacher" in entry:
                return entry["override /teacher@_global_.teacher"]
    return {"student": "tiny", "teacher": "small"}[group]


def smoke(command, models, folder):
    """Return the arguments of a command with folders of this machine, and few steps."""
    made = []
    for word in command:
        key, equals, value = word.partition("=")
        if key.endswith(".source"):
            value = str(models / Path(value).name)
        elif key.endswith(".init_from"):
            kind, name = Path(value).parts[1:3]
            value = str(next(folder.glob(f"runs/{kind}/{name.rpartition('-')[0]}-*")))
        elif key == "evaluate.systems":
            value = value.replace("/models", str(models))
        elif key == "data.path":
            value = str(folder / "german")
        made.append(key + equals + value)
    for group in ("student", "teacher"):
        name = choice_of(group, command)
        if name in NAMES and not any(word.startswith((f"{group}.source=", f"{group}.init_from=")) for word in made):
            made.append(f"{group}.source={models / name}")
    trained = choice_of("teacher", command) not in NAMES or "teacher.finetune=true" in made
    few = [] if "data=folder" in command else FEW
    return [*made, *few, *SMALL, *(TEACHER if trained else [])]


def test_the_page_has_commands_for_every_choice():
    assert len(COMMANDS["models"]) >= 15 and len(COMMANDS["training"]) >= 10
    assert all(f"`{name}`" in PAGES["models"] for name in NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run(page, models, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for n in range(60):
        save(folder / "german" / f"{n}.wav", text="eins zwei")
    # A run that another goes on from has to be there.
    first = ["train-teacher", "teacher=tiny"]
    for command in [first, *COMMANDS[page]]:
        code = main(smoke(command, models, folder))
        said = capsys.readouterr()
        assert not code, f"rkd {' '.join(command)}\n{said.err}"
        assert Path(said.out.strip()).is_dir(), command
