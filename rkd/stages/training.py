"""train-teacher and distill: the same training, with another teacher, noise, loss and trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from rkd.config import resolve_device, resolve_precision
from rkd.console import Progress, say
from rkd.errors import DataError
from rkd.runs import held, is_main, recorded, turn

if TYPE_CHECKING:
    from rkd.stages.plan import Plan


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
    if is_main():
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
        assemble.check_window(speech, teacher)
        tokenizer, window = teacher.tokenizer, teacher.window_seconds
    else:
        texts = [text for text in Store.open(speech, "train").texts if text]
        tokenizer, window = build_tokenizer(texts, cfg["data"]["tokenizer"]), assemble.window_seconds(speech)
    seed_everything(cfg["seed"])
    student = assemble.new_model(node, tokenizer, window, cfg["trust"])
    if node["init"] == "teacher":
        student.start_from(teacher, node["encoder_from"], node["decoder_from"])
    fit(plan, "distill", cfg, student, teacher, transcripts(plan, teacher), folder)
    if is_main():
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
    banks, rooms = plan.bank_folders(node["noise"]["types"]), plan.room_folder(node["noise"]["rooms"], node["noise"])
    noise = {
        split: assemble.corruption(node["noise"], store, split, banks, rooms, device, trust)
        for split, store in stores.items()
    }
    assemble.check_batch(trainer["batch_seconds"], student.window_seconds, accelerator.num_processes)
    labels = [encode(student.tokenizer, texts[name]) for name in stores["train"].ids]
    batches = Batches(
        stores["train"],
        labels,
        trainer["batch_seconds"],
        node["seed"],
        trainer["silence"],
        student.window_seconds,
        cfg["data"]["weights"],
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


def transcripts(plan: Plan, teacher: Any | None) -> dict[str, str] | None:
    """Return the teacher's greedy transcripts of a corpus without text, made once; None where the corpus has text."""
    if json.loads((plan.speech.folder / "summary.json").read_text())["has_text"]:
        return None
    if teacher is None:
        raise DataError(
            "the corpus has no text and there is no teacher to transcribe it; choose loss=kd and set teacher.path=RUN"
        )
    step = plan.step("transcribe", plan.speech.name, {}, [plan.speech, plan.teacher()], None)
    with held(step, wait=True), turn(False, plan.cfg["device"]) as own:
        if own and step.state != "done":
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
