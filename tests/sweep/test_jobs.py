"""Sweeps: every combination once, all of them checked before the first, a table that puts the best first."""

import json
import time

import pytest

from rkd.config import instantiate
from rkd.errors import ConfigError
from rkd.sweep import jobs as sweep
from rkd.sweep.jobs import dimensions, with_values
from rkd.sweep.launchers import Outcome
from rkd.sweep.sweepers import Grid

BASE = ["loss=supervised", "noise=white"]


def combinations(*words):
    sweeper = Grid()
    sweeper.begin(dimensions(words), None)
    varied = sweeper.propose()
    assert sweeper.propose() == []
    return [(with_values(words, run), run) for run in varied]


def test_every_combination_the_last_varies_fastest():
    runs = combinations("seed=1", "student=tiny,base", "noise.snr=[0,5],[10]", "noise@teacher.noise=white")
    assert [varied for _, varied in runs] == [
        ["student=tiny", "noise.snr=[0,5]"], ["student=tiny", "noise.snr=[10]"],
        ["student=base", "noise.snr=[0,5]"], ["student=base", "noise.snr=[10]"],
    ]  # fmt: skip
    assert runs[0][0] == ["seed=1", "student=tiny", "noise.snr=[0,5]", "noise@teacher.noise=white"]
    assert [words for words, _ in combinations("+a.b=range(0,3)", "noise@teacher.noise=choice(white,pink)")][1::2] == [
        ["+a.b=0", "noise@teacher.noise=pink"], ["+a.b=1", "noise@teacher.noise=pink"],
        ["+a.b=2", "noise@teacher.noise=pink"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student=tiny"], "no override has several values"),
        (["student=tiny,bse"], "nearest: base\nchoices"),
        (["student=tiny,base", "trainer.steps=5,0"], r"trainer.steps=0.*\n\(in the run student=tiny trainer.steps=0\)"),
        (["seed=glob(*)"], "name the values"),
        (["trainer.learning_rate=interval(1e-4,1e-2)"], "sweeper=optuna"),
        (["trainer.learning_rate=interval(2,1)"], "from the lower to the higher"),
    ],
)
def test_a_mistake_in_any_run_is_found_before_the_first(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        sweep.run("distill", [*overrides, f"root={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


class Pretends:
    """A launcher whose runs only leave their figures; the run numbered ``fails`` does not even that."""

    logs = True

    def __init__(self, wers, fails=None):
        self.wers, self.fails, self.commands = wers, fails, []

    def launch(self, commands, folder):
        self.commands = commands
        for command in commands:
            if command.number == self.fails:
                command.log.write_text("warning: x\nrkd: the disk is full: free some space\n")
                yield Outcome(command.number, 5, "", 1.0)
                continue
            run = self.folders[command.number]
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text(
                json.dumps({"step": 1, "validation_wer": self.wers[command.number], "best": True}) + "\n"
            )
            (run / "config.yaml").write_text("trainer:\n  steps: 1\n")
            yield Outcome(command.number, 0, str(run), 1.0)


def pretend(monkeypatch, tmp_path, launcher, *overrides):
    monkeypatch.setattr(
        sweep,
        "instantiate",
        lambda node, trust: launcher if "launchers" in node["_target_"] else instantiate(node, trust),
    )
    words = [*overrides, *BASE, f"root={tmp_path / 'runs'}"]
    launcher.folders = [sweep_folder(stage_words) for stage_words, _ in combinations(*words)]
    folders, code = sweep.run("distill", words)
    home = next((tmp_path / "runs" / "sweeps").iterdir())
    return folders, code, [line.split("\t") for line in (home / "summary.tsv").read_text().splitlines()]


def sweep_folder(words):
    from omegaconf import OmegaConf

    from rkd.config import compose
    from rkd.stages.plan import Plan

    return Plan(OmegaConf.to_container(compose("distill", words), resolve=True), "distill").targets()[-1].folder


def test_the_best_comes_first_and_a_failure_stops_nothing(tmp_path, monkeypatch, capsys):
    launcher = Pretends([0.4, 0.0, 0.2], fails=1)
    folders, code, table = pretend(monkeypatch, tmp_path, launcher, "seed=0,1,2")
    assert code == 5 and folders == [launcher.folders[0], launcher.folders[2]]
    assert table[0] == ["run", "noisy WER", "state", "folder"]
    assert [row[:3] for row in table[1:]] == [
        ["seed=2", "20.0%", "done"], ["seed=0", "40.0%", "done"], ["seed=1", "", "failed (5)"]
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "[2/3] seed=1: failed (5), 1 s; rkd: the disk is full" in said
    words = launcher.commands[0].words
    assert words[1:4] == ["-m", "rkd", "distill"] and "seed=0" in words


def test_lists_stand_in_the_table_as_they_were_written(tmp_path, capsys):
    sweep.summarise("distill", [sweep.Job([], ["effects=[gain,clipping]"], tmp_path, None)], tmp_path)
    assert "effects=[gain,clipping]" in capsys.readouterr().err


def test_runs_that_an_interruption_kept_from_beginning_were_not_started(tmp_path, monkeypatch, capsys):
    class Interrupted(Pretends):
        def launch(self, commands, folder):
            yield next(iter(super().launch(commands, folder)))
            yield from (Outcome(command.number, None, "", 0.0) for command in commands[1:])

    launcher = Interrupted([0.4])
    folders, code, table = pretend(monkeypatch, tmp_path, launcher, "seed=0,1")
    assert code == 75 and folders == launcher.folders[:1]
    assert [row[2] for row in table[1:]] == ["done", "not started"]
    assert "[2/2] seed=1: not started\n" in capsys.readouterr().err


def test_combinations_that_come_to_the_same_are_made_once(tmp_path, monkeypatch):
    launcher = Pretends([0.1, 0.2])
    folders, code, _ = pretend(monkeypatch, tmp_path, launcher, "trainer.learning_rate=0.001,1e-3")
    assert len(launcher.commands) == len(folders) == 1 and code == 0


def test_an_evaluation_is_ranked_by_its_student_in_noise(tmp_path):
    jobs = []
    for n, wers in enumerate([(0.1, 0.2, 0.4), (0.3, 0.1, 0.1)]):
        rows = [{"condition": c, "wer": wer} for c, wer in zip(("clean", "noise", "noise"), wers, strict=True)]
        systems = [{"role": "teacher", "conditions": rows[:1]}, {"role": "student", "conditions": rows}]
        folder = tmp_path / "evaluate" / str(n)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"systems": systems}))
        jobs.append(sweep.Job([], [f"seed={n}"], folder, Outcome(n, 0, "", 1.0)))
    jobs.append(sweep.Job([], ["seed=2"], tmp_path / "evaluate" / "nowhere", None))
    sweep.summarise("evaluate", jobs, tmp_path)
    table = [line.split("\t")[:4] for line in (tmp_path / "summary.tsv").read_text().splitlines()]
    assert table == [
        ["run", "noisy WER", "clean WER", "state"], ["seed=1", "10.0%", "30.0%", "done"],
        ["seed=0", "30.0%", "10.0%", "done"], ["seed=2", "", "", "not started"],
    ]  # fmt: skip


def test_a_search_gives_up_on_a_run_and_prints_the_best(tmp_path, monkeypatch, capsys):
    """A run that is worse than the others at its validation is stopped, and counts neither as failed nor as best."""
    pytest.importorskip("optuna")
    stopped = []

    class Trains(Pretends):
        def launch(self, commands, folder):
            for command in commands:
                self.commands = [*self.commands, command]
                wer = self.wers[command.number]
                run = sweep_folder(command.words[4:])
                run.mkdir(parents=True)
                (run / "config.yaml").write_text("trainer:\n  steps: 1\n")
                line = json.dumps({"step": 10, "validation_wer": wer, "best": True})
                (run / "metrics.jsonl").write_text(f'{line}\n{{"step": 1')
                deadline = time.monotonic() + 0.5
                while command.number not in stopped and time.monotonic() < deadline:
                    time.sleep(0.02)
                yield Outcome(command.number, 75 if command.number in stopped else 0, str(run), 1.0)

    monkeypatch.setattr(sweep, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(sweep, "stop_command", lambda number: stopped.append(number) or True)
    launcher = Trains([0.5, 0.4, 0.3, 0.9, 0.2])
    monkeypatch.setattr(
        sweep,
        "instantiate",
        lambda node, trust: launcher if "launchers" in node["_target_"] else instantiate(node, trust),
    )
    words = ["trainer.learning_rate=tag(log,interval(1e-4,1e-2))", "sweeper=optuna", "sweeper.n_trials=5",
             "sweeper.startup=2", *BASE, f"root={tmp_path / 'runs'}"]  # fmt: skip
    folders, code = sweep.run("distill", words)
    said = capsys.readouterr().err
    assert code == 0 and len(folders) == 4 and stopped == [3]
    assert "given up" in said and "best: rkd distill trainer.learning_rate=" in said
    best = next(word for word in launcher.commands[4].words if word.startswith("trainer.learning_rate="))
    assert f"best: rkd distill {best} loss=supervised" in said
