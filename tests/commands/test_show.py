"""`rkd show`: what a stage would run with, where each value comes from, and what a run folder says."""

import pytest
import yaml
from omegaconf import OmegaConf

from rkd.config import compose, conf_folders
from rkd.config.tree import leaves


@pytest.fixture(autouse=True)
def work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A user's folder that adds a choice and shadows one."""
    folder = tmp_path / "my_conf"
    own = (conf_folders()[-1] / "trainer" / "default.yaml").read_text()
    for name, text in {
        "noise/cafe": "defaults: [_common, _self_]\n"
        "types:\n  cups: {_target_: rkd.noise.Coloured, db_per_octave: -2, weight: 1}\n",
        "trainer/default": own.replace("steps: 2000", "steps: 1234"),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("RKD_CONF", str(folder))
    return folder


def origin(said, key):
    """Return the comment beside a dotted key."""
    above, found = [], None
    for line in said.out.splitlines():
        name = line.strip().partition(":")[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], name]
        if ".".join(above) == key:
            found = line.partition("  # ")[2]
    assert found is not None, key
    return found


@pytest.mark.parametrize(
    "stage, overrides",
    [
        ("prepare", []),
        ("train-teacher", ["teacher=ctc_small"]),
        ("distill", ["student=ctc_tiny", "loss=kd_hidden", "~loss.terms.ctc", "noise.operations={none:0.5,noise:0.5}"]),
        ("evaluate", ["experiment=smoke", "evaluate.snr=[0]", "device=cpu"]),
    ],
)
def test_it_prints_the_configuration_of_the_stage(rkd, stage, overrides):
    said = rkd("show", stage, *overrides)
    assert said.code == 0
    tree = OmegaConf.to_container(compose(stage, overrides))
    assert yaml.safe_load(said.out) == tree
    assert [key for key, _ in leaves(tree) if not origin(said, key)] == []


def test_each_value_names_the_file_that_it_comes_from(rkd):
    said = rkd("show", "distill", "student=ctc_tiny", "experiment=smoke", "noise.snr=[0,5]", "data.n_test=7")
    assert origin(said, "seed") == "conf/config.yaml"
    assert origin(said, "trainer.warmup") == "conf/trainer/default.yaml"
    assert origin(said, "trainer.steps") == "conf/experiment/smoke.yaml"
    assert origin(said, "teacher.trainer.warmup") == "conf/trainer/default.yaml"
    assert origin(said, "teacher.seed") == "conf/teacher/_training.yaml"
    assert origin(said, "student.d_model") == "conf/shape/ctc_tiny.yaml"
    assert origin(said, "noise.types.white.db_per_octave") == "conf/noise/white.yaml"
    assert origin(said, "noise.snr") == origin(said, "data.n_test") == "command line"
    assert origin(said, "loss.terms.soft._target_") == "conf/loss/kd.yaml: ${student.soft_loss}"


def test_the_users_folder_is_named(rkd, conf):
    said = rkd("show", "distill", "noise=cafe")
    assert origin(said, "noise.types.cups.db_per_octave") == f"{conf}/noise/cafe.yaml"
    assert origin(said, "trainer.steps") == f"{conf}/trainer/default.yaml"
    assert origin(said, "noise.snr") == "conf/noise/_common.yaml"
    assert "steps: 1234" in said.out


def test_the_run_folders_and_their_states_stand_first(rkd, make_run):
    first = rkd("show", "distill", "device=cpu").out.splitlines()
    folders = [line.split() for line in first if line.startswith("#")]
    assert [(state, folder.split("/")[1]) for _, state, folder in folders] == [
        ("missing", "prepare"), ("missing", "train-teacher"), ("missing", "distill")
    ]  # fmt: skip
    make_run("distill", folders[-1][-1].rpartition("/")[2], "failed")
    assert f"# failed       {folders[-1][-1]}" in rkd("show", "distill", "device=cpu").out.splitlines()


def test_a_configuration_is_shown_without_the_files_that_it_names(rkd):
    said = rkd("show", "distill", "data=folder", "data.path=/nowhere")
    assert said.code == 0 and "not known yet: /nowhere" in said.err
    assert origin(said, "data.path") == "command line"


def test_an_override_that_is_not_read_is_said(rkd):
    assert "prepare does not read student" in rkd("show", "prepare", "student=base").err


def test_a_run_folder_shows_state_error_figures_and_configuration(rkd, make_training):
    folder = make_training(state="failed", status={"error": "out of\ndisk"}, overrides_txt="noise.snr=[0,5]\nseed=3\n")
    said = rkd("show", folder)
    assert said.code == 0 and said.err == ""
    assert yaml.safe_load(said.out)["trainer"]["steps"] == 20
    for line in (
        f"# {folder}", "# state: failed", "# took: 60 s", "# error: out of disk", "# step: 15",
        "# best_validation_wer: 0.25", "# overrides: 'noise.snr=[0,5]' seed=3",
    ):  # fmt: skip
        assert line in said.out.splitlines()
    assert rkd("show", f"{folder}/").out.splitlines()[1:] == said.out.splitlines()[1:]


def test_a_run_folder_without_its_configuration_still_shows_its_state(rkd, make_run):
    said = rkd("show", make_run())
    assert said.code == 0 and "# state: done" in said.out and "config.yaml cannot be read" in said.err


@pytest.mark.parametrize(
    "arguments, part",
    [
        ([], "required: STAGE|RUNFOLDER"),
        (["distil"], "neither a stage nor a run folder (no status.json); nearest: distill"),
        (["."], "neither a stage nor a run folder"),
        (["distill", "trainer.lr=1"], "nearest: trainer.learning_rate"),
        (["distill", "--josn"], "unknown option --josn"),
        (["distill", "student=tyni"], "nearest: tiny"),
    ],
)
def test_a_wrong_call_says_what_would_be_right(rkd, arguments, part):
    said = rkd("show", *arguments)
    assert said.code == 2 and said.out == "" and part in said.err and len(said.err.splitlines()) <= 2


def test_overrides_have_no_meaning_for_a_run_folder(rkd, make_run):
    said = rkd("show", make_run(), "seed=1")
    assert said.code == 2 and "seed=1 has no meaning for a run folder" in said.err


def test_help_says_how_it_is_used(rkd):
    said = rkd("show", "--help")
    assert said.code == 0 and "rkd show distill student=base" in said.out


def test_a_configuration_that_is_no_yaml_is_shown_and_said(rkd, make_run):
    said = rkd("show", make_run(config_yaml="a: ["))
    assert said.code == 0 and "a: [" in said.out and "config.yaml cannot be read (" in said.err


def test_an_empty_mapping_names_its_file_too(rkd):
    [line] = [line for line in rkd("show", "prepare").out.splitlines() if line.strip().startswith("weights: {}")]
    assert line.endswith("# conf/data/_common.yaml")


def test_what_is_required_is_named_alone(rkd):
    said = rkd("show")
    assert said.code == 2 and said.err.startswith("rkd: show: the following arguments are required: STAGE")
    assert "OVERRIDE" not in said.err
