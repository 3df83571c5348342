"""The stages: prepare, train-teacher, distill, evaluate.

``Plan`` turns a configuration into a graph of run folders, without importing torch, so that a finished result is found
at once. Each ``build_*`` function makes one folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from rkd.config import NOT_ARGUMENTS, hash_files, instantiate, resolve_device, resolve_precision
from rkd.console import Progress, console, say, warn
from rkd.errors import CheckpointError, ConfigError, DataError
from rkd.runs import Step, environment, print_plan, recorded

# Raised when a change of code changes a stage's results.
VERSIONS = {"speech": 1, "noise": 1, "rooms": 1, "train-teacher": 1, "transcribe": 1, "distill": 1, "evaluate": 1}
# Keys that say where something lies; what lies there enters a fingerprint by its content.
LOCATIONS = {"path", "folder", "rooms", "systems"}


def run(stage: str, cfg: Any, overrides: list[str]) -> Path:
    """Run a stage, building first what it needs and lacks; return its run folder.

    Raises:
        ConfigError: with ``build=never``, when something would have to be built.
        RkdError: what the building raises.
    """
    plan = Plan(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))
    targets = plan.targets(stage)
    chain = list({step.folder: step for target in targets for step in target.chain()}.values())
    missing = [step for step in chain if step.state != "done"]
    if not missing:
        say(f"{targets[-1].folder} exists, nothing to do")
        return targets[-1].folder
    print_plan(chain)
    if cfg.build == "never":
        raise ConfigError(f"build=never, but {missing[0].folder} is not built; leave out build=never to build it")
    config_yaml = OmegaConf.to_yaml(cfg, resolve=True)
    for step in missing:
        with turn(step) as own:
            if own:
                with recorded(step, config_yaml, overrides) as folder:
                    step.build(folder)
    return targets[-1].folder


@contextmanager
def turn(step: Step) -> Iterator[bool]:
    """Say whether this process builds a step: all ranks train together, the first alone does the rest."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield True
        return
    from accelerate import PartialState

    state = PartialState(cpu=True)
    state.wait_for_everyone()
    yield state.is_main_process or step.stage in ("train-teacher", "distill")
    state.wait_for_everyone()


# --- the graph of folders --------------------------------------------------------------------------------------------


class Existing(Step):
    """A model folder that the user named; it is used as it is."""

    def __init__(self, path: str):
        self.path = Path(path)
        model = self.path / "model" if (self.path / "model" / "rkd.json").exists() else self.path
        if not (model / "rkd.json").exists():
            raise CheckpointError(
                f"{path} is not a model folder (it has no rkd.json); name a finished run or its model folder"
            )
        files = {"files": hash_files(files_under(model))}
        super().__init__(self.path.parent, "model", self.path.name, 1, files, [], lambda folder: None)

    @property
    def folder(self) -> Path:
        return self.path

    @property
    def state(self) -> str:
        return "done"


class Plan:
    """The folders that a configuration leads to, and what each is made of."""

    def __init__(self, cfg: dict[str, Any]):
        self.cfg = cfg
        self.root = Path(cfg["root"])

    def targets(self, stage: str) -> list[Step]:
        """Return the steps that a stage is about; the last is the one whose folder it prints."""
        if stage == "prepare":
            noises = [self.cfg["noise"], self.cfg["teacher"]["noise"]]
            return [bank for noise in noises for bank in self.noise(noise)] + [self.speech]
        return [{"train-teacher": self.teacher, "distill": self.student, "evaluate": self.evaluation}[stage]()]

    def step(
        self, stage: str, name: str, inputs: dict[str, Any], needs: list[Step], build: Any, kind: str = ""
    ) -> Step:
        """Return a step of this plan; ``kind`` tells the steps of the prepare stage apart."""
        return Step(self.root, stage, name, VERSIONS[kind or stage], inputs, needs, build)

    @cached_property
    def speech(self) -> Step:
        """The corpus."""
        data = self.cfg["data"]
        source = instantiate({k: v for k, v in data.items() if k not in NOT_ARGUMENTS["data"]}, self.cfg["trust"])
        # The tokenizer is made when a model is.
        inputs = without({k: v for k, v in data.items() if k != "tokenizer"})
        inputs["files"] = hash_files(source.input_paths())
        name = data["_target_"].rsplit(".", 1)[-1].lower()
        return self.step("prepare", name, inputs, [], partial(build_speech, data, source), "speech")

    def noise(self, noise: dict[str, Any]) -> list[Step]:
        """The noise banks and the rooms of a noise configuration."""
        rooms = [self.rooms(noise["rooms"])] if noise.get("rooms") else []
        return [*self.banks(noise["types"]).values(), *rooms]

    def banks(self, types: dict[str, Any]) -> dict[tuple, Step]:
        """The noise banks that noise types read from, by the key that ``assemble.bank_key`` gives them."""
        from rkd.data.banks import bank_key

        steps = {}
        for node in types.values():
            if node.get("folder"):
                key = bank_key(node["folder"], node.get("split", "file"), node.get("holdout", 0.25))
                inputs = {"split": key[1], "holdout": key[2], "files": hash_files(files_under(key[0], "noise.folder"))}
                build = partial(build_noise, key)
                steps[key] = self.step("prepare", f"noise-{Path(key[0]).name}", inputs, [], build, "noise")
        return steps

    def rooms(self, folder: str) -> Step:
        """The room responses of a folder."""
        inputs = {"files": hash_files(files_under(folder, "noise.rooms"))}
        return self.step("prepare", f"rooms-{Path(folder).name}", inputs, [], partial(build_rooms, folder), "rooms")

    def teacher(self) -> Step:
        """The teacher: trained here, or a folder that the user named."""
        node = self.cfg["teacher"]
        if node["path"]:
            return Existing(node["path"])
        inputs = {"teacher": without(node), "tokenizer": self.cfg["data"]["tokenizer"], **self.numbers(node["trainer"])}
        needs = [self.speech, *self.noise(node["noise"])]
        return self.step("train-teacher", node["name"], inputs, needs, partial(build_teacher, self))

    def student(self) -> Step:
        """The student."""
        cfg = self.cfg
        keys = ("student", "loss", "noise", "trainer", "seed")
        inputs = {key: without(cfg[key]) for key in keys}
        inputs |= {"tokenizer": cfg["data"]["tokenizer"], **self.numbers(cfg["trainer"])}
        needs = [self.speech, *self.noise(cfg["noise"]), *([self.teacher()] if self.needs_teacher else [])]
        return self.step("distill", cfg["name"] or cfg["student"]["name"], inputs, needs, partial(build_student, self))

    @property
    def needs_teacher(self) -> bool:
        """Whether the student learns from a teacher in any way."""
        on = [term for term in self.cfg["loss"]["terms"].values() if term["weight"] != 0]
        return (
            any(term.get("teacher") for term in on)
            or self.cfg["student"]["init"] == "teacher"
            or bool(self.cfg["teacher"]["path"])
        )

    def evaluation(self) -> Step:
        """The comparison of the student, its teacher and the other systems."""
        cfg = self.cfg
        systems = [self.student(), *([self.teacher()] if self.needs_teacher else [])]
        systems += [Existing(path) for path in cfg["evaluate"]["systems"]]
        inputs = {
            "evaluate": without(cfg["evaluate"]), "types": self.evaluation_types(locations=False),
            "trained on": sorted(cfg["noise"]["types"]), "levels": [cfg["noise"]["snr_level"], cfg["noise"]["order"]],
            "normaliser": cfg["data"]["normaliser"],
        }  # fmt: skip
        banks = self.banks(self.evaluation_types()).values()
        rooms = [self.rooms(cfg["evaluate"]["rooms"])] if cfg["evaluate"]["rooms"] else []
        name = cfg["name"] or cfg["student"]["name"]
        return self.step(
            "evaluate", name, inputs, [self.speech, *banks, *rooms, *systems], partial(build_evaluation, self)
        )

    def evaluation_types(self, locations: bool = True) -> dict[str, Any]:
        """The noise types that systems are compared in: the training's, the evaluation's, and recordings of its own."""
        types = {**self.cfg["evaluate"]["types"], **self.cfg["noise"]["types"]}
        if self.cfg["evaluate"]["folder"]:
            folder = self.cfg["evaluate"]["folder"]
            # Every class held out: all of the folder is test material that no training has read.
            types[Path(folder).name] = {
                "_target_": "rkd.noise.Recorded",
                "folder": folder,
                "split": "class",
                "holdout": 1.0,
            }
        return types if locations else without(types)

    def numbers(self, trainer: dict[str, Any]) -> dict[str, str]:
        """The number format in force: a result in bf16 is not the one in fp32."""
        device = resolve_device(self.cfg["device"])
        return {"precision": resolve_precision(trainer["precision"], device)}


def without(value: Any) -> Any:
    """Return a configuration without the keys that only say where things lie."""
    if isinstance(value, dict):
        return {key: without(item) for key, item in value.items() if key not in LOCATIONS}
    if isinstance(value, list):
        return [without(item) for item in value]
    return value


def files_under(folder: str | Path, key: str = "path") -> list[Path]:
    """Return all files under a folder, sorted.

    Raises:
        DataError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder; set {key}=/path/to/folder")
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


# --- prepare ---------------------------------------------------------------------------------------------------------


def build_speech(data: dict[str, Any], source: Any, folder: Path) -> None:
    """Write the corpus as 16 kHz PCM."""
    from rkd.data.sources import write_store

    summary = write_store(source, folder, data["min_seconds"], data["max_seconds"], data["normaliser"])
    for split, part in summary["splits"].items():
        say(
            f"  {split:10s} {part['utterances']} utterances, {part['hours']:.2f} h, "
            f"{part['words']} words, {part['speakers']} speakers"
        )
    report_rejected(summary, folder)


def build_noise(key: tuple, folder: Path) -> None:
    """Write a folder of noise recordings as 16 kHz PCM, split."""
    from rkd.data.banks import prepare_noise

    path, split, holdout = key
    report_rejected(prepare_noise(path, folder, split, holdout), folder)


def build_rooms(path: str, folder: Path) -> None:
    """Write room responses that begin at the direct path, split."""
    from rkd.data.banks import prepare_rooms

    report_rejected(prepare_rooms(path, folder), folder)


def report_rejected(summary: dict[str, Any], folder: Path) -> None:
    """Say what could not be read, and where the reasons are."""
    if summary["rejected"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary["rejected"].items())
        warn(f"rejected: {reasons}; see {folder / 'rejected.jsonl'}")


# --- train-teacher and distill ---------------------------------------------------------------------------------------


def build_teacher(plan: Plan, folder: Path) -> None:
    """Train a teacher on labels, in noise of its own."""
    from rkd import assemble
    from rkd.data.store import Store
    from rkd.models import save_model
    from rkd.tokenizer import build_tokenizer

    cfg, node, speech = plan.cfg, plan.cfg["teacher"], plan.speech.folder
    texts = [text for text in Store.open(speech, "train").texts if text]
    tokenizer = build_tokenizer(texts, cfg["data"]["tokenizer"])
    seed_everything(node["seed"])
    model = assemble.new_model(node, tokenizer, assemble.window_seconds(speech), cfg["trust"])
    fit(plan, "train-teacher", node, model, None, None, folder)
    save_model(model, node["family"], folder / "model")


def build_student(plan: Plan, folder: Path) -> None:
    """Train a student on labels, a teacher or both."""
    from rkd import assemble
    from rkd.data.store import Store
    from rkd.models import save_model
    from rkd.tokenizer import build_tokenizer

    cfg, node, speech = plan.cfg, plan.cfg["student"], plan.speech.folder
    teacher = assemble.saved_model(plan.teacher().folder, cfg) if plan.needs_teacher else None
    if teacher:
        tokenizer, window = teacher.tokenizer, teacher.window_seconds
    else:
        texts = [text for text in Store.open(speech, "train").texts if text]
        tokenizer, window = build_tokenizer(texts, cfg["data"]["tokenizer"]), assemble.window_seconds(speech)
    seed_everything(cfg["seed"])
    student = assemble.new_model(node, tokenizer, window, cfg["trust"])
    if node["init"] == "teacher":
        student.start_from(teacher, node["encoder_from"], node["decoder_from"])
    fit(plan, "distill", cfg, student, teacher, transcripts(plan, teacher), folder)
    save_model(student, node["family"], folder / "model")


def seed_everything(seed: int) -> None:
    """Seed the weights' initialisation."""
    import torch

    torch.manual_seed(seed)


def fit(
    plan: Plan,
    stage: str,
    node: dict[str, Any],
    student: Any,
    teacher: Any | None,
    texts: dict[str, str] | None,
    folder: Path,
) -> None:
    """Train a model with the noise, loss, trainer and seed of a node of the configuration.

    Args:
        node: the root of the configuration for a student, ``teacher`` for a teacher.
        texts: transcripts by utterance id, where the corpus has none of its own.
    """
    import torch

    from rkd import assemble
    from rkd.data.batches import Batches
    from rkd.data.store import Store
    from rkd.evaluate import validation_wer
    from rkd.tokenizer import encode
    from rkd.trainer import Objective, Settings, train

    cfg, trainer, trust = plan.cfg, node["trainer"], plan.cfg["trust"]
    device = resolve_device(cfg["device"])
    accelerator = assemble.accelerator(device, resolve_precision(trainer["precision"], device))
    device = accelerator.device
    stores = {split: Store.open(plan.speech.folder, split) for split in ("train", "validation")}
    texts = texts or {
        name: text for store in stores.values() for name, text in zip(store.ids, store.texts, strict=True)
    }
    banks, rooms = plan_banks(plan, node["noise"]["types"]), plan_rooms(plan, node["noise"]["rooms"])
    noise = {
        split: assemble.corruption(node["noise"], store, split, banks, rooms, device, trust)
        for split, store in stores.items()
    }
    assemble.check_batch(trainer["batch_seconds"], student.window_seconds, accelerator.num_processes)
    labels = [encode(student.tokenizer, texts[name]) for name in stores["train"].ids]
    batches = Batches(
        stores["train"], labels, trainer["batch_seconds"], node["seed"], trainer["silence"], student.window_seconds
    )
    n, seconds = trainer["validate_utterances"], trainer["batch_seconds"]
    heard = assemble.validation_set(stores["validation"], texts, noise["validation"], n, seconds, node["seed"], device)
    student.to(device)
    if teacher:
        teacher.to(device).eval().requires_grad_(False)
    terms, weights = assemble.terms(node["loss"], student, teacher, trust)
    asks_teacher = any(term.teacher for term in terms.values())
    noisy_teacher = node["loss"].get("teacher_input") == "noisy"

    @torch.no_grad()
    def teach(batch: Any) -> dict:
        if not (teacher and asks_teacher):
            return {}
        return teacher(batch.noisy_BT if noisy_teacher else batch.clean_BT, batch.lengths_B, batch.labels_BL)

    with Progress(stage, trainer["steps"]) as progress:
        train(
            Objective(student, terms, weights).to(device),
            batches,
            lambda batch: assemble.corrupt(batch, noise["train"]),
            teach,
            lambda model: validation_wer(model, heard, assemble.normaliser(cfg)),
            Settings(**trainer),
            folder,
            accelerator,
            progress,
            cfg["log_every"],
            cfg["workers"],
            node["seed"],
        )
    student.eval()


def plan_banks(plan: Plan, types: dict[str, Any]) -> dict[tuple, Path]:
    """Return the folders of the noise banks that types read from."""
    return {key: step.folder for key, step in plan.banks(types).items()}


def plan_rooms(plan: Plan, rooms: str | None) -> Path | None:
    """Return the folder of the prepared rooms."""
    return plan.rooms(rooms).folder if rooms else None


def transcripts(plan: Plan, teacher: Any | None) -> dict[str, str] | None:
    """Return the teacher's greedy transcripts of a corpus without text, made once; None where the corpus has text."""
    if json.loads((plan.speech.folder / "summary.json").read_text())["has_text"]:
        return None
    if teacher is None:
        raise DataError(
            "the corpus has no text and there is no teacher to transcribe it; choose loss=kd and set teacher.path=RUN"
        )
    step = plan.step("transcribe", plan.speech.name, {}, [plan.speech, plan.teacher()], None)
    if step.state != "done":
        with recorded(step, OmegaConf.to_yaml(plan.cfg), []) as folder:
            build_transcripts(plan, teacher, folder)
    return json.loads((step.folder / "transcripts.json").read_text())


def build_transcripts(plan: Plan, teacher: Any, folder: Path) -> None:
    """Write what the teacher hears in the clean speech of every split."""
    import torch

    from rkd import assemble
    from rkd.data.batches import Batches
    from rkd.data.store import Store

    device = torch.device(resolve_device(plan.cfg["device"]))
    normalise = assemble.normaliser(plan.cfg)
    teacher.to(device).eval()
    texts: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        say(f"  the corpus has no text: transcribing {split}")
        for batch in Batches(
            Store.open(plan.speech.folder, split), None, plan.cfg["trainer"]["batch_seconds"], 0
        ).once():
            batch = batch.to(device)
            written = teacher.transcribe(batch.clean_BT, batch.lengths_B)
            texts.update(zip(batch.ids, map(normalise, written), strict=True))
    (folder / "transcripts.json").write_text(json.dumps(texts, indent=1))


# --- evaluate --------------------------------------------------------------------------------------------------------


def build_evaluation(plan: Plan, folder: Path) -> None:
    """Compare the systems on the same mixtures; write the table and the report."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from rkd import assemble
    from rkd.data.batches import Batches
    from rkd.data.store import Store
    from rkd.evaluate import evaluate
    from rkd.metrics import pesq_available
    from rkd.models.base import count_parameters
    from rkd.report import print_table, write_report

    cfg, settings = plan.cfg, plan.cfg["evaluate"]
    device = torch.device(resolve_device(cfg["device"]))
    store = Store.open(plan.speech.folder, "test")
    models = systems(plan, device)
    warnings = (
        [] if pesq_available() else ["PESQ was not measured: the pesq package is not installed (it needs a C compiler)"]
    )
    conditions = build_conditions(plan, store, device, warnings)
    teacher = next((model for _, (role, model) in models.items() if role == "teacher"), None)
    texts = transcripts(plan, teacher)
    normalise = assemble.normaliser(cfg)
    references = {
        name: (texts or {}).get(name) or normalise(text or "")
        for name, text in zip(store.ids, store.texts, strict=True)
    }
    for line in warnings:
        warn(line)
    batches = Batches(store, None, settings["batch_seconds"], settings["seed"])
    rows, utterances, hashes, rtf = evaluate(
        {name: model for name, (_, model) in models.items()},
        conditions,
        batches,
        settings["max_utterances"],
        references,
        normalise,
        device,
        settings["beams"],
        settings["quality_utterances"],
        os.cpu_count() or 1,
        say,
    )
    results = {
        "name": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "reference": "teacher transcripts" if texts else "text",
        "warnings": warnings,
        "systems": [
            {
                "name": name, "role": role, "family": type(model).__name__.lower(), "params": count_parameters(model),
                "bytes": sum(t.numel() * t.element_size() for t in model.parameters()), "rtf": rtf.get(name),
                "conditions": rows[name],
            }
            for name, (role, model) in models.items()
        ],
        "mixtures": hashes,
        "config": (folder / "config.yaml").read_text(),
        "environment": environment(),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    pq.write_table(pa.Table.from_pylist(utterances), folder / "utterances.parquet")
    report = write_report(folder, results, utterances)
    print_table(results, console())
    say(f"report: {report}")


def systems(plan: Plan, device: Any) -> dict[str, tuple[str, Any]]:
    """Return the systems to compare by name, each with its role and its model, ready to transcribe."""
    from rkd import assemble

    found = [(f"student {plan.student().folder.name}", "student", plan.student().folder)]
    if plan.needs_teacher:
        found.insert(0, (f"teacher {plan.teacher().folder.name}", "teacher", plan.teacher().folder))
    for path in plan.cfg["evaluate"]["systems"]:
        name = Path(path).resolve().name if Path(path).name != "model" else Path(path).resolve().parent.name
        found.append((name if all(name != other for other, _, _ in found) else str(path), "baseline", Path(path)))
    return {name: (role, assemble.saved_model(path, plan.cfg).to(device).eval()) for name, role, path in found}


def build_conditions(plan: Plan, store: Any, device: Any, warnings: list[str]) -> list[Any]:
    """Return what the systems hear; a noise that the test split cannot give is left out and said."""
    from rkd import assemble
    from rkd.evaluate import Condition
    from rkd.noise import Corruption

    cfg, settings = plan.cfg, plan.cfg["evaluate"]
    noise, types = cfg["noise"], plan.evaluation_types()
    banks = plan_banks(plan, types)
    rooms = assemble.room_responses(plan_rooms(plan, settings["rooms"]), "test")
    conditions = [Condition("clean")]
    if rooms:
        conditions.append(Condition("reverb", corruption=Corruption({}, {}, {"reverb": 1.0}, [], rooms=rooms)))
    for name, node in types.items():
        # Recordings differ in whether their class was trained on; generated noise is one kind.
        for seen in (True, False) if node.get("folder") else (name in noise["types"],):
            group = seen if node.get("folder") else None
            try:
                kind = assemble.noise_type(node, store, "test", banks, group, device, cfg["trust"])
            except DataError as error:
                if not node.get("folder"):
                    warnings.append(f"not evaluated: {name} ({error})")
                continue
            for snr_db in settings["snr"]:
                for condition, operation in (("noise", "noise"), ("noise+reverb", "both"))[: 2 if rooms else 1]:
                    how = Corruption(
                        {name: kind},
                        {name: 1.0},
                        {operation: 1.0},
                        [snr_db],
                        None,
                        noise["snr_level"],
                        noise["order"],
                        rooms,
                    )
                    conditions.append(Condition(condition, name, seen, snr_db, how))
    return conditions
