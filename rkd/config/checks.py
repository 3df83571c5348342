"""What must fit together: streams that losses need and models provide, noise and its operations, classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rkd.config.classes import check_target, find_package
from rkd.config.folders import group_files
from rkd.config.overrides import Override
from rkd.config.reads import reads
from rkd.config.schema import BANK, CORPUS, INIT, MODEL, ORIGIN, PERTURBATIONS, START
from rkd.config.teaching import (
    against_itself,
    asks_teacher,
    check_codebooks,
    compares,
    is_on,
    is_trained,
    stores_targets,
    teacher_paths,
    teacher_terms,
)
from rkd.config.tree import select
from rkd.config.words import show
from rkd.errors import ConfigError
from rkd.phases import phases_of

GROUPS_WITHIN = {"noise", "denoiser", "trainer", "loss"}  # of a teacher
# Keys beside `_target_` that are read by rkd itself and do not reach a constructor.
NOT_ARGUMENTS = {
    "loss": {"weight", "needs", "teacher", "against"},
    "noise": {"weight", *BANK},
    "effect": {"probability"},
    "launcher": set(),
    "sweeper": set(),
    "denoiser": {"mixing"},
    "model": {*MODEL, *ORIGIN, *START, *INIT, *GROUPS_WITHIN, "finetune", "path", "weights", "seed"} - {"_target_"},
    "data": {key.partition(".")[0] for key in CORPUS},
}


def check_fit(tree: dict[str, Any], stage: str, overrides: Sequence[Override]) -> None:
    """Raise ConfigError for the first thing that does not fit in what a stage reads; each value is valid by itself."""
    given = {o.path for o in overrides}
    for package in tree["trust"]:
        if not find_package(package):
            raise ConfigError(f"trust=[{package}]: no such package; install it, or start rkd beside its folder")
    for key, node, kind in _targets(tree):
        arguments = [name for name in node if name != "_target_" and name not in NOT_ARGUMENTS[kind]]
        kept = {"noise": ["weight"], "loss": ["weight"], "effect": ["probability"]}.get(kind, [])
        check_target(node["_target_"], key, tree["trust"], arguments, kept)
    _check_data(tree["data"])
    teacher, student = tree["teacher"], tree["student"]
    for role in ("teacher", "student"):
        if tree[role]["init_from"] is not None and f"{role}.source" in given:
            raise ConfigError(f"{role}.init_from takes weights, shape and vocabulary from the run: leave out "
                              f"{role}.source")  # fmt: skip
    if reads(stage, "noise"):
        _check_noise(tree["noise"], "noise", given)
    _check_heads(teacher, "teacher")
    _check_teacher(teacher, given)
    if is_trained(teacher):
        _check_noise(teacher["noise"], "teacher.noise", given)
        _check_terms(teacher["loss"]["terms"], "teacher.loss.terms", _provided(tree, "teacher"), "teacher", None)
        _check_phases(teacher["trainer"], teacher["loss"], teacher["denoiser"], "teacher.")
        _check_shard(teacher["trainer"], teacher["loss"], "teacher.")
    if reads(stage, "student"):
        _check_heads(student, "student")
        _check_initialisation(student, teacher)
        _check_language(tree)
        _check_on_policy(tree["loss"], student)
        _check_prompts(tree)
        _check_terms(
            tree["loss"]["terms"], "loss.terms", _provided(tree, "student"), "student", _provided(tree, "teacher")
        )
        _check_phases(tree["trainer"], tree["loss"], tree["denoiser"], "")
        _check_shard(tree["trainer"], tree["loss"], "")
        _check_codebooks(tree)


def _provided(tree: dict[str, Any], role: str) -> list[str]:
    """Return the streams of the student or the teacher, with that of the denoiser that it wears."""
    denoiser = tree["denoiser"] if role == "student" else tree["teacher"]["denoiser"]
    return tree[role]["provides"] + (["waveform"] if denoiser["_target_"] else [])


def _check_data(data: dict[str, Any]) -> None:
    sources, weights = data.get("sources", {}), data["weights"]
    for name in weights:
        if name not in sources:
            there = f"; there are {', '.join(sources)}" if sources else ": the corpus is no mixture of sources"
            raise ConfigError(f"data.weights.{name}: there is no source {name}{there}")
    if sources and not any(weights.get(name, 1) > 0 for name in sources):
        raise ConfigError(f"data.weights: at least one source needs a weight above 0: set data.weights.{name}=1")
    low, high = data["min_seconds"], data["max_seconds"]
    if low > high:
        raise ConfigError(f"data.min_seconds={low:g} is above data.max_seconds={high:g}: nothing would be left")
    for key, as_it_is in PERTURBATIONS.items():
        values = data[key]
        if as_it_is in values or len(set(values)) < len(values):
            raise ConfigError(f"data.{key}={show(values)}: name other values than {as_it_is}, which changes nothing, "
                              "each once: the utterances as they are come anyway")  # fmt: skip
    if data.get("split", "hash") in ("hash", "speaker") and min(data.get("fractions", [1])) == 0:
        raise ConfigError(f"data.fractions={show(data['fractions'])}: training, validation and test each need a share "
                          "above 0")  # fmt: skip


def _targets(tree: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (key, node, kind) of every node with a `_target_`, nested ones in data too."""
    for key, kind in (("student", "model"), ("teacher", "model")):
        yield key, tree[key], kind
    for key, node in (("denoiser", tree["denoiser"]), ("teacher.denoiser", tree["teacher"]["denoiser"])):
        if node["_target_"] is None:
            if others := [name for name in node if name != "_target_"]:
                raise ConfigError(f"{key}.{others[0]}: there is no denoiser; {_wear(key)} has one")
        elif "mixing" not in node:
            raise ConfigError(f"{key} has no mixing: add {key}.mixing=1.0")
        else:
            yield key, node, "denoiser"
    for key, kind in (("noise.types", "noise"), ("teacher.noise.types", "noise"), ("evaluate.types", "noise"),
                      ("noise.effects", "effect"), ("teacher.noise.effects", "effect"),
                      ("teacher.loss.terms", "loss"), ("loss.terms", "loss")):  # fmt: skip
        for name, node in select(tree, key).items():
            needed_by = {"loss": {"weight", "needs"}, "effect": {"probability"}}
            missing = {"_target_"} | needed_by.get(kind, {"weight"})
            for needed in sorted(missing - set(node)):
                raise ConfigError(f"{key}.{name} has no {needed}: add {key}.{name}.{needed}=...")
            yield f"{key}.{name}", node, kind
    yield "launcher", tree["launcher"], "launcher"
    yield "sweeper", tree["sweeper"], "sweeper"
    yield from _nested(tree["data"], "data")


def _nested(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node, "data"
        for name, value in node.items():
            yield from _nested(value, f"{key}.{name}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _nested(value, f"{key}[{i}]")


def _check_heads(model: dict[str, Any], key: str) -> None:
    for part in ("encoder_layers", "decoder_layers", "dropout"):
        if "source" not in model and part in model and model[part] is None:
            raise ConfigError(f"{key}.{part}=null: {model['name']} has no source to take it from; give a number")
    d_model, heads = model.get("d_model"), model.get("heads")
    if isinstance(d_model, int) and isinstance(heads, int) and d_model % heads:
        raise ConfigError(f"{key}.heads={heads} does not divide {key}.d_model={d_model}")


def _check_noise(noise: dict[str, Any], key: str, given: set[str]) -> None:
    if noise["snr_range"] is not None and f"{key}.snr" in given:
        fix = "give one of them" if f"{key}.snr_range" in given else f"add {key}.snr_range=null"
        raise ConfigError(f"{key}.snr and {key}.snr_range exclude each other: {fix}")
    shares = noise["operations"]
    if abs(sum(shares.values()) - 1) > 1e-6:
        now = ",".join(f"{name}:{share:g}" for name, share in shares.items())
        raise ConfigError(f"{key}.operations sums to {sum(shares.values()):g}, and must sum to 1: "
                          f"'{key}.operations={{{now}}}'")  # fmt: skip
    with_noise = shares["noise"] + shares["both"] > 0
    with_rooms = shares["reverb"] + shares["both"] > 0
    if with_noise and not any(t["weight"] > 0 for t in noise["types"].values()):
        group = "noise" if key == "noise" else "noise@teacher.noise"
        raise ConfigError(f"{key}.operations asks for noise, but {key}.types has none with a weight: "
                          f"{group}=generated has some")  # fmt: skip
    if noise["only"] > 0 and not with_noise:
        raise ConfigError(f"{key}.only={noise['only']:g} asks for noise alone, but {key}.operations asks for none: "
                          f"{'noise' if key == 'noise' else 'noise@teacher.noise'}=generated has some, or set "
                          f"{key}.only=0")  # fmt: skip
    recorded = [name for name, node in noise["types"].items() if "folder" in node]
    for name in recorded:
        if noise["types"][name]["folder"] is None:
            where = f"{key}.folder" if len(recorded) == 1 else f"{key}.types.{name}.folder"
            raise ConfigError(f"{key}.types.{name} needs recordings: set {where}=<folder>")
    if with_rooms and noise["rooms"] is None:
        raise ConfigError(
            f"{key}.operations asks for rooms: set {key}.rooms=<folder of room impulse responses>, or "
            f"{key}.rooms=simulated"
        )
    if noise["rooms"] is not None and not with_rooms:
        raise ConfigError(
            f"{key}.rooms is set, but no operation uses rooms: set shares that sum to 1, such as "
            f"{key}.operations.both=0.4 {key}.operations.noise={max(shares['noise'] - 0.4, 0):g}"
        )
    if noise["folder"] is not None and not any(t.get("folder") == noise["folder"] for t in noise["types"].values()):
        group = "noise" if key == "noise" else "noise@teacher.noise"
        raise ConfigError(f"{key}.folder is set, but no noise type reads it: {group}=recorded does")


def _check_teacher(teacher: dict[str, Any], given: set[str]) -> None:
    weights, paths = teacher["weights"], teacher_paths(teacher)
    if weights is not None and len(weights) != len(paths):
        raise ConfigError(f"teacher.weights has {len(weights)} numbers, but teacher.path names {len(paths)} teachers: "
                          "give one for each, or leave out teacher.weights")  # fmt: skip
    if is_trained(teacher):
        return
    if teacher["denoiser"]["_target_"] is not None:
        raise ConfigError(
            "teacher.denoiser: a denoiser must be trained, and the teacher is used as it is; "
            + ("leave one of the two out" if teacher["path"] else "add teacher.finetune=true")
        )
    if teacher["path"] is not None:
        return
    if "source" not in teacher:
        raise ConfigError(f"teacher.finetune=false: {teacher['name']} is not pretrained, as teacher=whisper-small is")
    if "teacher.trainer.steps" in given:
        raise ConfigError("teacher.trainer.steps: a pretrained teacher is used as it is; add teacher.finetune=true")
    if teacher["init_from"] is not None:
        raise ConfigError("teacher.init_from continues a training: add teacher.finetune=true, or, to use the run as it "
                          "is, set teacher.path")  # fmt: skip
    if teacher["vocabulary"] == "corpus":
        raise ConfigError("teacher.vocabulary=corpus makes weights that must be trained: add teacher.finetune=true")


def _check_initialisation(student: dict[str, Any], teacher: dict[str, Any]) -> None:
    if student["init"] == "pretrained" and "source" not in student:
        raise ConfigError(f"student.init=pretrained: {student['name']} is a shape of rkd's own and has no pretrained "
                          "weights; choose student=whisper-tiny or the like")  # fmt: skip
    if student["init_from"] is not None:
        if student["init"] == "teacher":
            raise ConfigError("student.init=teacher and student.init_from exclude each other: leave one out")
        if student["vocabulary"] == "corpus":
            raise ConfigError("student.init_from keeps the run's vocabulary: leave out student.vocabulary=corpus")
    chosen = [key for key in ("encoder_from", "decoder_from") if student[key] is not None]
    if student["init"] != "teacher":
        if chosen:
            raise ConfigError(f"student.{chosen[0]} needs student.init=teacher")
        fewer = [key for key in ("encoder_layers", "decoder_layers") if student.get(key) is not None]
        if student["init"] == "pretrained" and fewer and student["init_from"] is None:
            raise ConfigError(f"student.{fewer[0]} leaves out pretrained layers: add student.init=teacher to "
                              "copy a teacher's, or student.init=random")  # fmt: skip
        return
    for key in chosen:
        have, want = teacher.get(key.replace("_from", "_layers")), student.get(key.replace("_from", "_layers"))
        if want is not None and len(student[key]) != want:
            raise ConfigError(f"student.{key} names {len(student[key])} layers, but the student has {want}")
        if teacher["path"] is None and have is not None and max(student[key]) >= have:
            raise ConfigError(f"student.{key}: the teacher's layers are 0 to {have - 1}")
    if teacher["path"] is not None:
        return
    if teacher["family"] != student["family"]:
        raise ConfigError(f"student.init=teacher needs models of one family: the teacher is {teacher['family']}, "
                          f"the student {student['family']}")  # fmt: skip
    if "source" in student and student["name"] != teacher["name"]:
        raise ConfigError(
            f"student.init=teacher copies layers of {teacher['name']}, so that is the student's shape, too: "
            f"student={teacher['name']}, with student.decoder_layers or student.encoder_layers for fewer"
        )
    for key in ("d_model", "ffn", "heads", "n_mels"):
        if teacher.get(key) != student.get(key):
            raise ConfigError(
                f"student.init=teacher copies layers, so the shapes must agree: student.{key}={student.get(key)}, but "
                f"teacher.{key}={teacher.get(key)}"
            )


def _check_language(tree: dict[str, Any]) -> None:
    """What a decoder says depends on the language that it is asked for."""
    student, teacher, loss = tree["student"], tree["teacher"], tree["loss"]
    learns = loss["labels"] == "teacher" or any(map(asks_teacher, loss["terms"].values()))
    for key in ("language", "task"):
        ours, theirs = student.get(key), teacher.get(key)
        if learns and teacher["path"] is None and None not in (ours, theirs) and ours != theirs:
            raise ConfigError(f"student.{key}={ours}, but its teacher has teacher.{key}={theirs}: set both alike")


def _check_on_policy(loss: dict[str, Any], student: dict[str, Any]) -> None:
    """Comparing student and teacher on the student's transcripts takes a decoder, and something that compares."""
    key = f"loss.on_policy={loss['on_policy']:g}"
    if loss["on_policy"] == 0:
        return
    if "logits" not in student["provides"]:
        able = "|".join(name for name in group_files("student") if "logits" in _provides("student", name))
        raise ConfigError(f"{key}: {student['name']} has no decoder that goes on from what it wrote; leave it out, or "
                          f"use student={able}")  # fmt: skip
    if not any(map(asks_teacher, loss["terms"].values())):
        raise ConfigError(f"{key}: no loss term compares the student with a teacher; use loss=kd, or leave it out")


def _check_prompts(tree: dict[str, Any]) -> None:
    """Timestamps and what was said before are asked for in the words of a pretrained Whisper's vocabulary."""
    asked, student, teacher = tree["transcripts"], tree["student"], tree["teacher"]
    for key in ("timestamps", "text_before"):
        if asked[key] == 0:
            continue
        said = f"transcripts.{key}={asked[key]:g}"
        if student["family"] != "hubwhisper" or student["vocabulary"] == "corpus":
            raise ConfigError(
                f"{said}: student={student['name']} with vocabulary={student['vocabulary']} has no such tokens; "
                "set it to 0, or use a pretrained Whisper with its own vocabulary"
            )
        if key == "timestamps" and teacher["path"] is None and teacher["family"] != "hubwhisper":
            raise ConfigError(
                f"{said}: teacher={teacher['name']} writes none; set it to 0, or use teacher=whisper-small"
            )


def _check_terms(
    terms: dict[str, Any], key: str, provides: list[str], model: str, teacher_provides: list[str] | None
) -> None:
    """Check the streams of every term that has a weight; `teacher_provides` is None where no teacher takes part."""
    active = {name: term for name, term in terms.items() if is_on(term)}
    if not active:
        raise ConfigError(f"{key}: no term has a weight, so there is nothing to learn from")
    for name, term in active.items():
        _check_arguments(term, f"{key}.{name}")
        # Against itself the student gives both sides.
        for stream in term["needs"] + (term.get("teacher", []) if against_itself(term) else []):
            if stream not in provides:
                raise ConfigError(
                    f"{key}.{name} needs the {model}'s stream {stream}, but the {model} provides "
                    f"{', '.join(provides)}\n"
                    f"{_fix(model, stream, f'~{key}.{name}')}"
                )
        for stream in term.get("teacher", []) if asks_teacher(term) else []:
            if teacher_provides is None:
                raise ConfigError(f"{key}.{name} needs the teacher's stream {stream}, but nobody teaches the teacher")
            if stream not in teacher_provides:
                raise ConfigError(
                    f"{key}.{name} needs the teacher's stream {stream}, but the teacher provides "
                    f"{', '.join(teacher_provides)}\n{_fix('teacher', stream, 'loss=transcripts')}"
                )


def _check_phases(trainer: dict[str, Any], loss: dict[str, Any], denoiser: dict[str, Any], where: str) -> None:
    """Refuse phases that do not fill the steps, that learn nothing, or that train a denoiser which is not there."""
    terms = loss["terms"]
    on = [name for name, term in terms.items() if is_on(term)]
    phases = phases_of(trainer, on, terms.keys() - on, f"{where}trainer")
    for i, phase in enumerate(phases, 1):
        if not any(phase.weights.get(name, terms[name]["weight"]) for name in on):
            raise ConfigError(f"{where}trainer.phases: phase {i} gives every term the weight 0, so there is nothing to "
                              "learn from")  # fmt: skip
        if not denoiser["_target_"] and "denoiser" in phase.train:
            raise ConfigError(f"{where}trainer trains the denoiser, and there is none; {_wear(f'{where}denoiser')} has "
                              "one")  # fmt: skip


def _check_shard(trainer: dict[str, Any], loss: dict[str, Any], where: str) -> None:
    """Refuse what works with whole weights only."""
    with_whole = {
        "trainer.average": trainer["average"] is not None, "trainer.compile": trainer["compile"],
        "loss.balance": loss.get("balance") == "gradient", "loss.on_policy": loss.get("on_policy", 0) > 0,
    }  # fmt: skip
    for key, asked in with_whole.items():
        if asked and trainer["shard"]:
            raise ConfigError(f"{where}trainer.shard=true divides the weights over the ranks, and {where}{key} works "
                              "with whole ones only: leave one of the two out")  # fmt: skip


def _check_codebooks(tree: dict[str, Any]) -> None:
    """Refuse codebooks that do not divide hidden layers of rkd's own shapes; others are refused once they are known."""
    teacher = tree["teacher"]
    width = teacher.get("d_model") if str(teacher.get("_target_")).startswith("rkd.") else None
    layers = stores_targets(tree) and any(compares(term, "hidden") for term in teacher_terms(tree).values())
    if layers and width and not teacher["path"]:
        check_codebooks(tree["targets"]["codebooks"], width)


def _check_arguments(term: dict[str, Any], key: str) -> None:
    """Check what the rules of single keys cannot see."""
    for name in ("weight", "temperature"):
        value = term.get(name)
        if isinstance(value, dict) and not {"from", "to"} <= value.keys() <= {"from", "to", "shape"}:
            raise ConfigError(f"{key}.{name}: a value that changes over the training has from, to and, if you like, "
                              f"shape: '{key}.{name}={{from: 1, to: 0, shape: cosine}}'")  # fmt: skip
    if term.get("divergence") == "mse" and term.get("top_k") is not None:
        raise ConfigError(f"{key}.top_k: divergence=mse compares logits, which have no rest: set {key}.top_k=null")
    if against_itself(term) and not term.get("teacher"):
        raise ConfigError(f"{key}.against=itself: the term compares the student with nobody; leave it out")


def _fix(model: str, stream: str, otherwise: str) -> str:
    if stream == "waveform":
        return f"use {_wear('denoiser' if model == 'student' else 'teacher.denoiser')}, or {otherwise}"
    able = [name for name in group_files(model) if stream in _provides(model, name)]
    return "use " + (f"{model}={'|'.join(able)}, or " if able else "") + otherwise


def _wear(key: str) -> str:
    return "denoiser=mask" if key == "denoiser" else "denoiser@teacher.denoiser=mask"


def _provides(group: str, choice: str) -> list[str]:
    """Read from YAML alone what a model's choice provides, following its defaults (Hydra would take a second)."""
    import yaml

    from rkd.config.folders import conf_folders

    file = next((f for c in conf_folders() if (f := c / group / f"{choice}.yaml").is_file()), None)
    node = yaml.safe_load(file.read_text(encoding="utf-8")) if file else None
    if not isinstance(node, dict):
        return []
    if "provides" in node:
        return list(node["provides"])
    for entry in node.get("defaults", []):
        if isinstance(entry, dict):
            [(name, value)] = entry.items()
            found = [] if name.startswith("override") else _provides(name.partition("@")[0].lstrip("/"), str(value))
        else:
            found = _provides(group, entry)
        if found:
            return found
    return []
