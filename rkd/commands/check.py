"""`rkd check`: whether a stage could run here, before hours go into it. Builds nothing and writes nothing.

(The hashes of input files go into the user's cache, as with every stage.)
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import os
import shutil
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.commands.help import STAGES
from rkd.commands.options import Parser
from rkd.config.schema import PERTURBATIONS
from rkd.config.teaching import is_trained, live_because, stored_settings, teacher_paths, teacher_terms
from rkd.console import put
from rkd.errors import DataError, ResourceError, RkdError

if TYPE_CHECKING:
    from rkd.data.banks import Recordings
    from rkd.runs import Step
    from rkd.stages.plan import Plan

_LOOKED_AT = 16  # recordings of a folder that are decoded
_COMPARED = 5000  # words of the corpus that the teacher's vocabulary has to spell
_PCM_BYTES_PER_SECOND = 2 * 16000
_SECONDS_A_STRING = 2.5  # of a generated or joined utterance of a few words
# fp32 copies of a model's weights in its folder at most: the model, the best checkpoint, and twice, while a new one
# replaces the old, the last checkpoint with Adam's two moments.
_COPIES = 1 + 1 + 2 * 3


@dataclass
class Findings:
    """What was looked at, as (subject, finding), and what stands in the way of a run."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[RkdError] = field(default_factory=list)
    prepared_bytes: dict[str, float] = field(default_factory=dict)  # by name of the prepare step
    to_write_bytes: float = 0.0

    def say(self, subject: str, finding: str) -> None:
        self.facts.append((subject, finding))

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Keep an expected error of the body as a problem; one that is known already is not said twice."""
        try:
            yield
        except RkdError as error:
            if str(error) not in map(str, self.problems):
                self.problems.append(error)


def parser() -> Parser:
    """Return the options."""
    made = Parser(
        "check",
        "Check configuration, files, some of the recordings, device, disk space, packages and vocabulary, and say\n"
        "what would be built. Builds nothing and writes nothing. Findings go to stdout, problems to stderr; the exit\n"
        "code is 0, or that of the first problem.",
        "examples:\n"
        "  rkd check distill data=folder data.path=/data/speech\n"
        "  rkd check evaluate device=cuda && rkd evaluate device=cuda",
    )
    made.add_argument("stage", metavar="STAGE", choices=tuple(STAGES), help=" | ".join(STAGES))
    made.add_argument(
        "overrides", nargs="*", default=[], metavar="OVERRIDE", help="group=choice or key=value, as for the stage"
    )
    return made


def run(options: argparse.Namespace) -> int:
    """Print what was found; return the exit code of the first problem."""
    from omegaconf import OmegaConf

    from rkd import config

    composed = config.compose(options.stage, options.overrides)
    found = Findings()
    found.say("config", "every key and value is valid, and all fits together")
    for line in config.unread_overrides(options.stage, options.overrides):
        found.say("config", f"warning: {line}")
    from rkd.stages.plan import Plan

    tree: Any = OmegaConf.to_container(composed)
    examine(Plan(tree, options.stage), found, {config.parse_override(o).path for o in options.overrides})
    width = max(len(subject) for subject, _ in found.facts) + 2
    put("\n".join(f"{subject:{width}s}{finding}" for subject, finding in found.facts))
    for problem in found.problems:
        print(f"rkd: {problem}", file=sys.stderr, flush=True)
    return found.problems[0].exit_code if found.problems else 0


def examine(plan: Plan, found: Findings, given: Container[str] = ()) -> None:
    """Look at everything that a stage needs.

    Args:
        given: the keys that were set on the command line.
    """
    _devices(plan, found)
    _recordings(plan, found)
    _models(plan, found)
    _packages(plan, found)
    if found.problems:
        found.say("to build", "not known before the problems are solved")
        return
    from rkd.runs import all_steps, refuse_damaged

    with found.trying():
        steps = all_steps(plan.targets())
        for step in steps:
            with found.trying():
                refuse_damaged(step)
                found.say("exists" if step.state == "done" else "to build", _described(step, plan, found))
        _targets(plan, found, given)
        _vocabulary(plan, found)
    _disk(plan.root, found)


def _trains(plan: Plan) -> list[str]:
    """Return the models that the stage trains, unless they exist."""
    teacher = plan.stage == "train-teacher" or (plan.stage in ("distill", "evaluate") and plan.needs_teacher)
    roles = ["teacher"] if teacher and is_trained(plan.cfg["teacher"]) else []
    return roles + (["student"] if plan.stage in ("distill", "evaluate") else [])


def _devices(plan: Plan, found: Findings) -> None:
    from rkd.config import resolve_device, resolve_precision

    with found.trying():
        device = resolve_device(plan.cfg["device"])
        found.say("device", device + (" (no CUDA device was found)" if plan.cfg["device"] == "auto" != device else ""))
        for role in _trains(plan):
            trainer = plan.cfg["teacher"]["trainer"] if role == "teacher" else plan.cfg["trainer"]
            with found.trying():
                found.say("device", f"{role} trained in {resolve_precision(trainer['precision'], device)}")


# ---- files ----


def _recordings(plan: Plan, found: Findings) -> None:
    """Look at some recordings of the corpus, and of each folder of noise or rooms that the stage reads."""
    from rkd.config.tree import leaves
    from rkd.data.banks import find_rooms
    from rkd.data.sources.base import is_audio
    from rkd.data.store import SPLITS

    with found.trying():
        files = [one for one in plan.source.inputs() if isinstance(one, Path)]
        recordings = [path for path in files if is_audio(path)]
        if files and not recordings:
            found.say("files", f"warning: data: {len(files)} files, such as {files[0]}, and no recording among them")
        seconds = _look_at("data", recordings, found) if recordings else 0.0
        most = plan.cfg["data"]["max_utterances"] or math.inf  # of each split
        strings = [min(value, most) for key, value in leaves(plan.cfg["data"]) if _last(key).startswith("n_")]
        # A source that is told how many strings to make or to join writes those, not its recordings.
        if strings:
            seconds = sum(strings) * _SECONDS_A_STRING
        elif recordings:
            seconds *= min(1, len(SPLITS) * most / len(recordings))
        made = [f"{key} {value:g}" for key in PERTURBATIONS for value in plan.cfg["data"][key]]
        if made:
            found.say(
                "files", f"data: each training utterance comes {1 + len(made)} times: as it is, {', '.join(made)}"
            )
        found.prepared_bytes[plan.speech.name] = seconds * (1 + len(made)) * _PCM_BYTES_PER_SECOND
    for noise, name in _noises(plan).items():
        with found.trying():
            seconds = _look_at(f"noise {name}", [path for path in noise.files() if is_audio(path)], found)
            seconds = min(seconds, len(SPLITS) * 60 * noise.max_minutes)
            found.prepared_bytes[f"noise-{Path(noise.folder).name}"] = seconds * _PCM_BYTES_PER_SECOND
    for folder in sorted({node["rooms"] for node in _noise_nodes(plan) if node["rooms"]} - {"simulated"}):
        with found.trying():
            seconds = _look_at("rooms", list(find_rooms(folder).values()), found)
            found.prepared_bytes[f"rooms-{Path(folder).name}"] = 2 * seconds * _PCM_BYTES_PER_SECOND  # 32 bits


def _noise_nodes(plan: Plan) -> list[dict[str, Any]]:
    """Return the configurations of noise that the stage reads."""
    cfg = plan.cfg
    nodes = [cfg["noise"]] if plan.stage != "train-teacher" else []
    nodes += [cfg["teacher"]["noise"]] if plan.stage == "prepare" or "teacher" in _trains(plan) else []
    return nodes + ([{**cfg["evaluate"], "types": plan.evaluation_types()}] if plan.stage == "evaluate" else [])


def _noises(plan: Plan) -> dict[Recordings, str]:
    """Return the recordings that noise types read, each once, with the name of a type."""
    from rkd.data.banks import Recordings

    found: dict[Recordings, str] = {}
    for node in _noise_nodes(plan):
        for name, kind in node["types"].items():
            if kind.get("folder"):
                found.setdefault(Recordings.of(kind), name)
    return found


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _look_at(key: str, paths: list[Path], found: Findings) -> float:
    """Decode some recordings, evenly spread; return how many seconds all of them last by that."""
    from rkd.audio import decode

    chosen = [paths[i * len(paths) // _LOOKED_AT] for i in range(_LOOKED_AT)] if len(paths) > _LOOKED_AT else paths
    seconds, errors = [], []
    for path in chosen:
        try:
            x_T, rate_hz = decode(path)
            seconds.append(len(x_T) / rate_hz)
        except DataError as error:
            errors.append(str(error))
    if len(errors) > len(chosen) / 2:
        raise DataError(f"{key}: {len(errors)} of {len(chosen)} recordings cannot be used; the first: {errors[0]}")
    total_seconds = sum(seconds) / len(seconds) * len(paths)
    found.say("files", f"{key}: {len(paths)} recordings, about {total_seconds / 3600:.2f} h; looked at {len(chosen)}")
    if errors:
        found.say("files", f"warning: {key}: {len(errors)} of them cannot be used; the first: {errors[0]}")
    return total_seconds


def _models(plan: Plan, found: Findings) -> None:
    """See whether the model folders that the user named are some."""
    from rkd.stages.plan import Existing

    used = plan.stage in ("train-teacher", "distill", "evaluate")
    systems = plan.cfg["evaluate"]["systems"] if plan.stage == "evaluate" else []
    for path in (teacher_paths(plan.cfg["teacher"]) if used else []) + systems:
        with found.trying():
            found.say("files", f"model folder {Existing(path).path}")


def _packages(plan: Plan, found: Findings) -> None:
    from rkd.config.tree import leaves

    targets = [value for key, value in leaves(plan.cfg["data"]) if _last(key) == "_target_"]
    if any(target.endswith(".Digits") for target in targets):
        with found.trying():
            if importlib.util.find_spec("espeakng_loader") is None:
                raise ResourceError(
                    "the corpus is spoken by eSpeak NG: pip install espeakng-loader, or choose data=..."
                )
            found.say("packages", "espeakng-loader is there")
    if plan.stage == "evaluate" and plan.cfg["evaluate"]["quality_utterances"] > 0:
        there = importlib.util.find_spec("pesq") is not None
        found.say("packages", "pesq is there" if there else "warning: without pesq, PESQ will not be measured")


# ---- what would be built ----


def _described(step: Step, plan: Plan, found: Findings) -> str:
    """Return a folder and what is known of it; what is to be built counts towards the disk."""
    from rkd.runs import STATE_WORDS

    state = "" if step.state in ("done", "missing") else f" ({STATE_WORDS.get(step.state, step.state)})"
    if step.stage == "prepare" and step.state != "done":
        found.to_write_bytes += found.prepared_bytes.get(step.name, 0.0)
    role = {"train-teacher": "teacher", "distill": "student"}.get(step.stage)
    if role is None or step.state == "done":
        return f"{step.folder}{state}"
    n = _count_weights(plan.cfg[role])
    if n is None:
        return f"{step.folder}{state}, of a size that is not known"
    found.to_write_bytes += _COPIES * 4 * n
    denoiser = (plan.cfg if role == "student" else plan.cfg["teacher"])["denoiser"]["_target_"]
    return f"{step.folder}{state}, about {n / 1e6:.2f}M weights" + (", and its denoiser's" if denoiser else "")


def _count_weights(model: dict[str, Any]) -> int | None:
    """Estimate a Transformer's weights from its shape; None for a model that has no such shape.

    Four d x d matrices for attention (eight in a decoder layer, which also listens to the encoder), two d x ffn
    matrices, and the encoder's two convolutions of width 3; without the embeddings of a small vocabulary.
    """
    if not all(isinstance(model.get(key), int) for key in ("d_model", "ffn", "n_mels", "encoder_layers")):
        return None
    d, ffn = model["d_model"], model["ffn"]
    encoder = model["encoder_layers"] * (4 * d * d + 2 * d * ffn) + 3 * d * (model["n_mels"] + d)
    return encoder + model.get("decoder_layers", 0) * (8 * d * d + 2 * d * ffn)


def _targets(plan: Plan, found: Findings, given: Container[str]) -> None:
    """Say whether the student's teachers will be loaded, and which keys of ``targets`` that leaves without effect."""
    from rkd.stages.targets import seldom_heard

    if plan.stage not in ("distill", "evaluate"):
        return
    terms = teacher_terms(plan.cfg)
    why = live_because(plan.cfg) or (seldom_heard(plan) if plan.speech.state == "done" else None)
    if terms:
        stored = "outputs are stored, and read by what follows without the teacher"
        found.say("targets", f"the teacher hears every batch: {why}" if why else stored)
    used = {} if why else stored_settings(plan.cfg)
    for key in plan.cfg["targets"]:
        if key not in ("live", *used) and f"targets.{key}" in given:
            reason = why or ("no loss term compares what it is about" if terms else "no loss term asks a teacher")
            found.say("targets", f"warning: targets.{key} changes nothing: {reason}")


def _vocabulary(plan: Plan, found: Findings) -> None:
    """See whether the corpus has text, and whether an existing teacher's tokens can spell it."""
    plan.check_text()
    if plan.stage not in ("distill", "evaluate") or not plan.needs_teacher or plan.teacher().state != "done":
        return
    from rkd.models import recogniser_folder

    file = recogniser_folder(plan.teacher().folder) / "tokenizer.json"
    words = sorted(_corpus_words(plan))[:_COMPARED]
    if not file.is_file() or not words:
        found.say("vocabulary", "not compared: the corpus is not prepared yet, or the teacher has no tokenizer.json")
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    lost = [word for word in words if not _spells(tokenizer, word)]
    if lost:
        raise DataError(
            f"the teacher's vocabulary cannot spell {len(lost)} of {len(words)} words of the corpus, such as "
            f"{', '.join(lost[:5])}: choose a teacher that was trained on such text, or leave out teacher.path"
        )
    found.say("vocabulary", f"the teacher's tokens spell the corpus's {len(words)} words")


def _spells(tokenizer: Any, word: str) -> bool:
    ids = tokenizer.encode(f" {word}", add_special_tokens=False).ids
    return tokenizer.decode(ids, skip_special_tokens=True).strip() == word


def _corpus_words(plan: Plan) -> set[str]:
    """Return the words of the corpus as far as they are at hand: prepared, beside recordings, or configured."""
    from rkd.config.tree import leaves
    from rkd.data.sources.base import is_audio
    from rkd.data.store import SPLITS, Store
    from rkd.normalisation import normaliser

    if plan.speech.state == "done":
        stores = [Store.open(plan.speech.folder, split) for split in SPLITS]
        return {word for store in stores for text in store.texts if text for word in text.split()}
    recordings = (one for one in plan.source.inputs() if isinstance(one, Path) and is_audio(one))
    files = (text for path in recordings if (text := path.with_suffix(".txt")).is_file())
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in itertools.islice(files, _COMPARED)]
    texts += [word for key, value in leaves(plan.cfg["data"]) if _last(key) == "words" for word in value]
    normalise = normaliser(plan.cfg["data"]["normaliser"])
    return {word for text in texts for word in normalise(text).split()}


def _disk(root: Path, found: Findings) -> None:
    """Compare what will be written, of which prepared stores are the most, with what is free."""
    there = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    with found.trying():
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise ResourceError(f"{there} cannot be written: set root=/another/folder")
        free = shutil.disk_usage(there).free
        found.say("disk", f"at most about {_size(found.to_write_bytes)} to write, {_size(free)} free in {there}")
        if found.to_write_bytes > free:
            raise ResourceError(
                f"about {_size(found.to_write_bytes)} will be written, but {there} has {_size(free)} free: make room, "
                "or set root=/another/folder"
            )


def _size(n_bytes: float) -> str:
    """Return a number of bytes as people say it."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
