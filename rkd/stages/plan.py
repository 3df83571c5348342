"""From a configuration to a graph of run folders, without importing torch: a finished result is found at once."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd import hub
from rkd.config import NOT_ARGUMENTS, hash_files, hash_inputs, instantiate, resolve_device, resolve_precision
from rkd.config.schema import PERTURBATIONS
from rkd.config.teaching import (
    is_trained,
    of_frames,
    stored_inputs,
    stored_settings,
    stores_targets,
    teacher_paths,
    teacher_terms,
)
from rkd.config.tree import leaves
from rkd.errors import CheckpointError, DataError
from rkd.models import model_folder, read_card
from rkd.runs import Step
from rkd.stages.prepare import build_noise, build_rooms, build_simulated_rooms, build_speech
from rkd.status import damaged_files, one_of, read_status

if TYPE_CHECKING:
    from rkd.data.banks import Recordings

# Raised when a change of code changes a stage's results.
VERSIONS = {
    "speech": 2, "noise": 2, "rooms": 2, "train-teacher": 2, "transcribe": 3, "targets": 3, "distill": 3, "evaluate": 3,
}  # fmt: skip
# Keys that say where something lies; what lies there enters a fingerprint by its content.
LOCATIONS = {"path", "folder", "rooms", "systems", "source", "revision", "init_from"}
# Keys that say how something is computed: the result is the same.
MEANS = {"recompute", "shard"}
# Keys that came later, each with the value that leaves a result, and the name of its folder, as it was without the key.
NEUTRAL: dict[str, Any] = {
    "speed": [], "tempo": [], "pitch_shift": [], "only": 0, "effects": {}, "timestamps": 0, "text_before": 0,
}  # fmt: skip


class Existing(Step):
    """A model folder that the user named; it is used as it is.

    Raises:
        CheckpointError: it is none.
    """

    is_run = False

    def __init__(self, path: str):
        self.path = Path(path)
        if damaged := damaged_files(self.path, read_status(self.path)):
            raise CheckpointError(f"{path} is damaged: {one_of(damaged)}; build it again, or name another folder")
        model = model_folder(self.path)
        read_card(model)
        if (model / "rkd.json").is_file():
            for weights in model.rglob("*.safetensors"):
                hub.check_length(weights)
        else:
            hub.check_whole(model, path)
        files = {"files": hash_files(files_under(model))}
        super().__init__(self.path.parent, "model", self.path.name, 1, files, [], lambda folder: None)

    @property
    def folder(self) -> Path:
        return self.path

    @property
    def state(self) -> str:
        return "done"


class Pretrained(Step):
    """A pretrained model, in a folder of the user's or in the hub's cache, where it is downloaded if it is missing.

    Args:
        node: ``student`` or ``teacher`` of the configuration.
        role: which of the two.
        may_ask: whether the hub may be asked for what the cache does not know.
    """

    is_run = False

    def __init__(self, node: dict[str, Any], role: str, may_ask: bool):
        key = f"{role}.source"
        types, with_tokenizer = node["model_types"], node["vocabulary"] != "corpus"
        self.source = hub.find(node["source"], node["revision"], types, key, may_ask, with_tokenizer)
        stage = "download" if self.source.repository else "model"
        # Language, prompt and window make another teacher of the same weights.
        inputs = {**self.source.identity, "settings": {k: node[k] for k in ("language", "task", "window") if k in node}}
        super().__init__(
            self.source.folder.parent,
            stage,
            node["name"],
            1,
            inputs,
            [],
            lambda _: hub.download(self.source, types, key),
        )

    @property
    def folder(self) -> Path:
        return self.source.folder

    @property
    def state(self) -> str:
        return "done" if self.source.complete else "missing"


class Plan:
    """The folders that a configuration leads to, and what each is made of."""

    def __init__(self, cfg: dict[str, Any], stage: str):
        self.cfg = cfg
        self.stage = stage
        self.root = Path(cfg["root"])
        self._banks: dict[Recordings, Step] = {}  # listing a large set takes seconds
        self._rooms: dict[tuple[str, int], Step] = {}

    def targets(self) -> list[Step]:
        """Return the steps that the stage is about; the last is the one whose folder it prints."""
        if self.stage == "prepare":
            noises = [self.cfg["noise"], self.cfg["teacher"]["noise"]]
            return [bank for noise in noises for bank in self.noise(noise)] + [self.speech]
        return [{"train-teacher": self.teacher, "distill": self.student, "evaluate": self.evaluation}[self.stage]()]

    def step(
        self, stage: str, name: str, inputs: dict[str, Any], needs: list[Step], build: Any = None, kind: str = ""
    ) -> Step:
        """Return a step of this plan; ``kind`` tells the steps of the prepare stage apart.

        The user's ``name=`` is for the folder of the stage in hand, not for what it builds on.
        """
        if self.cfg["name"] and stage == self.stage != "prepare":
            name = self.cfg["name"]
        return Step(self.root, stage, name, VERSIONS[kind or stage], inputs, needs, build)

    @cached_property
    def source(self) -> Any:
        """What the corpus is read from."""
        arguments = {key: value for key, value in self.cfg["data"].items() if key not in NOT_ARGUMENTS["data"]}
        return instantiate(arguments, self.cfg["trust"])

    @cached_property
    def speech(self) -> Step:
        """The corpus."""
        data, source = self.cfg["data"], self.source
        # The tokenizer is made when a model is, and weights matter when one is trained.
        inputs = without({k: v for k, v in data.items() if k not in ("tokenizer", "weights")}, listed=True)
        files = list(source.inputs())
        inputs["files"] = hash_inputs(files)
        name = data["_target_"].rsplit(".", 1)[-1].lower()
        build = partial(build_speech, data, source, self._expected(files), self.cfg["prepare_workers"])
        return self.step("prepare", name, inputs, [], build, "speech")

    def _expected(self, files: list[Path | str]) -> int | None:
        """About how many utterances will be prepared: the recordings that there are, unless strings are made."""
        from rkd.data.sources.base import is_audio

        makes_strings = any(key.rpartition(".")[2].startswith("n_") for key, _ in leaves(self.cfg["data"]))
        n_recordings = sum(isinstance(one, Path) and is_audio(one) for one in files)
        makes_more = any(self.cfg["data"][key] for key in PERTURBATIONS)
        return None if makes_strings or makes_more or self.cfg["data"]["max_utterances"] else n_recordings or None

    def check_text(self) -> None:
        """Refuse a training that needs text once the corpus is prepared and known to have none.

        Raises:
            DataError: with what to do.
        """
        from rkd.data.store import read_summary

        has_teacher = self.stage == "train-teacher" or self.needs_teacher
        transcribes = has_teacher and not is_trained(self.cfg["teacher"])
        if self.stage == "prepare" or transcribes or self.speech.state != "done":
            return
        if not read_summary(self.speech.folder)["has_text"]:
            raise DataError(
                "the corpus has no text, and no teacher that could transcribe it; take teacher.path=RUN, or "
                "loss=transcripts with a pretrained teacher"
            )

    def noise(self, noise: dict[str, Any]) -> list[Step]:
        """The noise banks and the rooms of a noise configuration."""
        rooms = [self.rooms(noise["rooms"], noise)] if noise["rooms"] else []
        return [*self.banks(noise["types"]).values(), *rooms]

    def banks(self, types: dict[str, Any]) -> dict[Recordings, Step]:
        """The noise banks that noise types read from."""
        from rkd.data.banks import Recordings

        wanted = [Recordings.of(node) for node in types.values() if node.get("folder")]
        return {recordings: self._bank(recordings) for recordings in wanted}

    def _bank(self, recordings: Recordings) -> Step:
        if recordings not in self._banks:
            inputs = {**recordings.inputs(), "files": hash_files(recordings.files())}
            name, build = f"noise-{Path(recordings.folder).name}", partial(build_noise, recordings)
            self._banks[recordings] = self.step("prepare", name, inputs, [], build, "noise")
        return self._banks[recordings]

    def rooms(self, where: str, noise: dict[str, Any]) -> Step:
        """The room responses of a folder, or with ``simulated`` those that a noise configuration describes."""
        from rkd.data.banks import find_rooms

        if where == "simulated":
            settings = noise["simulated"]
            build = partial(build_simulated_rooms, settings)
            return self.step("prepare", "rooms-simulated", settings, [], build, "rooms")
        limit = noise["max_responses"]
        if (where, limit) not in self._rooms:
            inputs = {"files": hash_files(find_rooms(where).values()), "max_responses": limit}
            name, build = f"rooms-{Path(where).name}", partial(build_rooms, where, limit)
            self._rooms[where, limit] = self.step("prepare", name, inputs, [], build, "rooms")
        return self._rooms[where, limit]

    def bank_folders(self, types: dict[str, Any]) -> dict[Recordings, Path]:
        """The folders of the noise banks that noise types read from."""
        return {recordings: step.folder for recordings, step in self.banks(types).items()}

    def room_folder(self, where: str | None, noise: dict[str, Any]) -> Path | None:
        """The folder of the prepared rooms."""
        return self.rooms(where, noise).folder if where else None

    def teachers(self) -> list[Step]:
        """The teachers: folders that the user named, or one that is trained here, or pretrained and used as it is."""
        node = self.cfg["teacher"]
        if node["path"]:
            return [Existing(path) for path in teacher_paths(node)]
        if not is_trained(node):
            return [self.pretrained("teacher")]
        own = {key: value for key, value in node.items() if key != "weights"}
        inputs = {"teacher": without(own), **self.corpus(), **self.numbers(node["trainer"])}
        needs = [self.speech, *self.noise(node["noise"]), *self.origin("teacher")]
        return [self.step("train-teacher", node["name"], inputs, needs)]

    def teacher(self) -> Step:
        """The first of the teachers: it transcribes, and gives a student its layers and its vocabulary."""
        return self.teachers()[0]

    def transcription(self) -> Step:
        """The first teacher's transcripts of the corpus, made by the training or the evaluation that asks for them."""
        asked = self.cfg["transcripts"]
        how = without({"beams": asked["beams"], "timestamps": asked["timestamps"] > 0})
        how |= self.numbers(self.cfg["trainer"])
        return self.step("transcribe", self.speech.name, how, [self.speech, self.teacher()])

    def description(self, teacher: Step) -> Step:
        """What students ask of a teacher besides its outputs, made by the first that asks."""
        return self.step("targets", teacher.name, {}, [teacher])

    def stored_outputs(self, teacher: Step, stream: str, labels: Step | None) -> Step:
        """A stream of a teacher on the corpus, made by the first student that asks for it.

        Args:
            labels: the transcripts that it is given; None for the corpus's own text.
        """
        inputs = {**stored_inputs(self.cfg, stream), **self.numbers(self.cfg["trainer"])}
        needs = [self.speech, teacher, *([labels] if labels and not of_frames(stream) else [])]
        return self.step("targets", f"{self.speech.name}-{stream}", inputs, needs)

    def student(self) -> Step:
        """The student."""
        cfg = self.cfg
        keys = ("student", "denoiser", "loss", "noise", "trainer", "seed")
        inputs = {key: without(cfg[key]) for key in keys}
        inputs |= {**self.corpus(), **self.numbers(cfg["trainer"])}
        needs = [self.speech, *self.noise(cfg["noise"]), *self.origin("student")]
        needs += self.teachers() if self.needs_teacher else []
        if stores_targets(cfg):  # where they are not, after all, it is by what is hashed here, too
            inputs["targets"] = {**stored_settings(cfg), "version": VERSIONS["targets"]}
        if self.needs_teacher:
            inputs["transcripts"] = without(cfg["transcripts"])
        if cfg["teacher"]["weights"]:
            inputs["teachers' weights"] = cfg["teacher"]["weights"]
        return self.step("distill", cfg["student"]["name"], inputs, needs)

    def pretrained(self, role: str) -> Step:
        """The pretrained model that the ``student`` or ``teacher`` is, or starts from."""
        return Pretrained(self.cfg[role], role, may_ask=self.cfg["build"] != "never")

    def origin(self, role: str) -> list[Step]:
        """What gives a model that is trained its first weights or its shape, besides its teacher."""
        node = self.cfg[role]
        if node["init_from"]:
            return [Existing(node["init_from"])]
        return [self.pretrained(role)] if "source" in node and node.get("init") != "teacher" else []

    @property
    def needs_teacher(self) -> bool:
        """Whether the student learns from a teacher in any way."""
        return (
            bool(teacher_terms(self.cfg))
            or self.cfg["student"]["init"] == "teacher"
            or self.cfg["loss"]["labels"] == "teacher"
            or bool(self.cfg["teacher"]["path"])
        )

    def evaluation(self) -> Step:
        """The comparison of the student, its teacher and the other systems."""
        cfg = self.cfg
        systems = [self.student(), *(self.teachers() if self.needs_teacher else [])]
        systems += [Existing(path) for path in cfg["evaluate"]["systems"]]
        inputs = {
            "evaluate": without(cfg["evaluate"]), "types": self.evaluation_types(locations=False),
            "trained on": sorted(cfg["noise"]["types"]), "levels": [cfg["noise"]["snr_level"], cfg["noise"]["order"]],
            "scoring": cfg["scoring"],
        }  # fmt: skip
        banks = self.banks(self.evaluation_types()).values()
        where = cfg["evaluate"]["rooms"]
        rooms = [self.rooms(where, cfg["noise"])] if where else []
        return self.step("evaluate", cfg["student"]["name"], inputs, [self.speech, *banks, *rooms, *systems])

    def evaluation_types(self, locations: bool = True) -> dict[str, Any]:
        """The noise types that systems are compared in: the training's, the evaluation's, and recordings of its own."""
        types = {**self.cfg["evaluate"]["types"], **self.cfg["noise"]["types"]}
        if self.cfg["evaluate"]["folder"]:
            folder = self.cfg["evaluate"]["folder"]
            # Every class held out: all of the folder is test material that no training has read.
            types[Path(folder).name] = {
                "_target_": "rkd.noise.Recorded",
                "folder": folder,
                "layout": self.cfg["evaluate"]["layout"],
                "split": "class",
                "holdout": 1.0,
            }
        return types if locations else without(types)

    def corpus(self) -> dict[str, Any]:
        """What a training makes of the corpus, beside what was prepared, and how its validation counts errors."""
        return {**{key: self.cfg["data"][key] for key in ("tokenizer", "weights")}, "scoring": self.cfg["scoring"]}

    def numbers(self, trainer: dict[str, Any]) -> dict[str, str]:
        """The number format in force: a result in bf16 is not the one in fp32."""
        device = resolve_device(self.cfg["device"])
        return {"precision": resolve_precision(trainer["precision"], device)}


def without(value: Any, listed: bool = False) -> Any:
    """Return a configuration without the keys that only say where things lie, or that change nothing of a result.

    Args:
        listed: whether a class of a user's own lists its files, as data sources do; of any other the content of the
            files that it names is left in place of their names.
    """
    if isinstance(value, dict):
        foreign = not listed and not str(value.get("_target_") or "rkd.").startswith("rkd.")
        kept = {
            k: content_of(v) if k in LOCATIONS else v
            for k, v in value.items()
            if (foreign or k not in LOCATIONS) and k not in MEANS and not (k in NEUTRAL and v == NEUTRAL[k])
        }
        # The order of effects is what one hears, and that of keys counts in no fingerprint.
        return {
            k: [*map(list, without(v, listed).items())] if k == "effects" else without(v, listed)
            for k, v in kept.items()
        }
    if isinstance(value, list):
        return [without(item, listed) for item in value]
    return value


def content_of(value: Any) -> Any:
    """Return the hash of the files that a value names; the value itself where it names none."""
    path = Path(value) if isinstance(value, str) else None
    if path and path.exists():
        return hash_files(files_under(path) if path.is_dir() else [path])
    return value


def files_under(folder: Path) -> list[Path]:
    """Return all files under a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
