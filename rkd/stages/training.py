"""train-teacher and distill: the same training, with another teacher, noise, loss and trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd import ranks
from rkd.config.teaching import asks_teacher, of_frames
from rkd.console import Progress, warn
from rkd.errors import DataError
from rkd.normalisation import normaliser
from rkd.stages.targets import student_teachers, with_outputs
from rkd.stages.transcription import labels_of_teacher, transcripts

if TYPE_CHECKING:
    import torch

    from rkd.data.batches import Batch, Batches, Prompted
    from rkd.data.store import Store
    from rkd.models.base import Streams
    from rkd.stages.plan import Plan
    from rkd.targets import StoredTeacher
    from rkd.transcripts import Transcript


def build_teacher(plan: Plan, folder: Path) -> None:
    """Train a teacher on labels, in noise of its own."""
    from rkd import assemble
    from rkd.data.store import Store
    from rkd.models import save_model
    from rkd.tokenizer import build_tokenizer

    cfg, node, speech = plan.cfg, plan.cfg["teacher"], plan.speech.folder
    denoiser, trust = node["denoiser"], cfg["trust"]
    texts = filter(None, Store.open(speech, "train").texts)
    kind = cfg["data"]["tokenizer"]
    seed_everything(node["seed"])
    if node["init_from"]:
        model = assemble.continued_model(node, denoiser, cfg)
    elif "source" in node:
        fresh = texts if node["vocabulary"] == "corpus" else None
        model = assemble.hub_model(node, denoiser, plan.pretrained("teacher").folder, True, fresh, kind, trust)
    else:
        tokenizer = build_tokenizer(texts, kind)
        model = assemble.new_model(node, denoiser, tokenizer, assemble.window_seconds(speech), trust)
    assemble.check_window(speech, model)
    assemble.check_language(speech, model, "teacher")
    assemble.check_batch(speech, node["trainer"], ranks.world_size(), model.window_seconds)
    fit(plan, "train-teacher", node, model, [], None, folder)
    if ranks.is_main():
        save_model(model, node["family"], folder / "model")


def build_student(plan: Plan, folder: Path) -> None:
    """Train a student on labels, teachers or both."""
    import torch

    from rkd import assemble
    from rkd.models import save_model

    cfg, node = plan.cfg, plan.cfg["student"]
    assemble.check_batch(plan.speech.folder, cfg["trainer"], ranks.world_size())  # before the teacher does any work
    teachers = student_teachers(plan)
    for teacher in teachers:
        assemble.check_window(plan.speech.folder, teacher)
        assemble.check_language(plan.speech.folder, teacher, "teacher")
    first = teachers[0] if teachers else None
    told = transcripts(plan, first, cfg["loss"]["labels"] == "teacher")
    written = labels_of_teacher(plan, told)
    seed_everything(cfg["seed"])
    student = new_student(plan, first, written)
    assemble.check_window(plan.speech.folder, student)
    assemble.check_language(plan.speech.folder, student, "student")
    assemble.check_batch(plan.speech.folder, cfg["trainer"], ranks.world_size(), student.window_seconds)
    with torch.random.fork_rng(devices=[]):  # a student begins alike whether or not a teacher is loaded now
        teachers = with_outputs(plan, teachers, student, told)
    fit(plan, "distill", cfg, student, teachers, written, folder)
    if ranks.is_main():
        save_model(student, node["family"], folder / "model")


def new_student(plan: Plan, teacher: Any | None, transcripts: dict[str, Transcript] | None) -> Any:
    """Return the student before its first step.

    Args:
        transcripts: the teacher's, by utterance id, where they are the labels; see `labels_of_teacher`.
    """
    from rkd import assemble
    from rkd.data.store import Store
    from rkd.models.enhanced import start_from
    from rkd.tokenizer import build_tokenizer
    from rkd.transcripts import texts_of

    cfg, node, speech = plan.cfg, plan.cfg["student"], plan.speech.folder
    denoiser, trust = cfg["denoiser"], cfg["trust"]
    store, kind = Store.open(speech, "train"), cfg["data"]["tokenizer"]
    written = filter(None, texts_of(store, transcripts))
    if node["init_from"]:
        return assemble.continued_model(node, denoiser, cfg)
    if "source" in node:
        origin = plan.teacher() if node["init"] == "teacher" else plan.pretrained("student")
        fresh = written if node["vocabulary"] == "corpus" else None
        weights = node["init"] == "pretrained"
        student = assemble.hub_model(node, denoiser, origin.folder, weights, fresh, kind, trust)
    else:
        asked = any(map(asks_teacher, cfg["loss"]["terms"].values()))
        inherits = node["vocabulary"] == "inherit" and (asked or node["init"] == "teacher")
        tokenizer = teacher.tokenizer if teacher and inherits else build_tokenizer(written, kind)
        student = assemble.new_model(node, denoiser, tokenizer, assemble.window_seconds(speech), trust)
    if node["init"] == "teacher":
        start_from(student, teacher, node["encoder_from"], node["decoder_from"])
    return student


def seed_everything(seed: int) -> None:
    """Seed the weights' initialisation."""
    import torch

    torch.manual_seed(seed)


def fit(
    plan: Plan,
    stage: str,
    node: dict[str, Any],
    student: Any,
    teachers: Sequence[Any],
    transcripts: dict[str, Transcript] | None,
    folder: Path,
) -> None:
    """Train a model with the noise, loss, trainer and seed of a node of the configuration.

    Args:
        node: the root of the configuration for a student, ``teacher`` for a teacher.
        transcripts: labels by utterance id, where they are not the corpus's own; training utterances that have none
            are left out.
    """
    from rkd import assemble
    from rkd.data.store import Store
    from rkd.targets import StoredTeacher
    from rkd.training.layers import compile_layers, recompute_layers
    from rkd.training.objective import Objective
    from rkd.training.on_policy import OnPolicy
    from rkd.training.settings import Settings
    from rkd.training.trainer import train
    from rkd.training.tuning import attach_adapters
    from rkd.transcripts import texts_of

    cfg, trainer, loss, trust = plan.cfg, node["trainer"], node["loss"], plan.cfg["trust"]
    accelerator = ranks.accelerator(cfg["device"], trainer["precision"])
    device = accelerator.device
    stores = {split: Store.open(plan.speech.folder, split) for split in ("train", "validation")}
    banks, rooms = plan.bank_folders(node["noise"]["types"]), plan.room_folder(node["noise"]["rooms"], node["noise"])
    learns = node["denoiser"]["_target_"] is not None
    noise = {
        split: assemble.corruption(node["noise"], store, split, banks, rooms, device, trust, learns)
        for split, store in stores.items()
    }
    check_words(student.tokenizer, texts_of(stores["train"], transcripts), stage)
    stored = [teacher for teacher in teachers if isinstance(teacher, StoredTeacher)]
    batches = training_batches(plan, node, stores["train"], student, transcripts, stored)
    validate = validation(plan, node, stores["validation"], transcripts, noise["validation"], device)
    adapters = None
    if trainer["adapters"]:
        adapters = attach_adapters(student, trainer["adapters"], getattr(student, "fresh", ()))
    if trainer["recompute"]:
        recompute_layers(student)
    if trainer["compile"]:
        compile_layers(student)
    shares = assemble.teacher_shares(len(teachers), cfg["teacher"]["weights"])
    terms, weights = assemble.terms(loss, student, teachers, shares, trust)
    phases = assemble.phases_by_teacher(trainer["phases"], loss, shares)
    balance_every = loss["balance_every"] if loss.get("balance") == "gradient" else None
    share, temperature = (loss.get(key, 0.0) for key in ("on_policy", "on_policy_temperature"))
    with Progress(stage, trainer["steps"]) as progress:
        train(
            Objective(student, terms, weights, balance_every),
            batches,
            lambda batch, phase: assemble.corrupt(batch, noise["train"].at(phase.snr_db, phase.snr_range_db)),
            (lambda batch: batch.stored) if stored else live_outputs(loss, terms, teachers, device),
            validate,
            Settings(**{**trainer, "phases": phases}),
            folder,
            accelerator,
            progress,
            cfg["log_every"],
            cfg["workers"],
            node["seed"],
            OnPolicy(student, share, temperature, node["seed"]) if share else None,
        )
    if adapters:
        adapters.merge_and_unload()
    student.eval()


def training_batches(
    plan: Plan,
    node: dict[str, Any],
    store: Store,
    student: Any,
    transcripts: dict[str, Transcript] | None,
    stored: Sequence[StoredTeacher],
) -> Batches:
    """Return the batches of a training, with the labels and the stored outputs that it learns from; see `fit`."""
    from rkd.data.batches import Batches
    from rkd.tokenizer import encode
    from rkd.transcripts import labels_of

    trainer, tokenizer = node["trainer"], student.tokenizer
    return Batches(
        store,
        labels_of(store, transcripts, tokenizer),
        trainer["batch_seconds"],
        node["seed"],
        trainer["silence"],
        student.window_seconds,
        plan.cfg["data"]["weights"],
        node["noise"]["only"],
        encode(tokenizer, ""),
        prompted(plan.cfg["transcripts"], store, student, transcripts) if transcripts else None,
        stored,
    )


def validation(
    plan: Plan,
    node: dict[str, Any],
    store: Store,
    transcripts: dict[str, Transcript] | None,
    corruption: Any,
    device: torch.device,
) -> Callable[[Any], float]:
    """Return what tells a student's word error rate on the validation split, in noise that stays the same; see `fit`.

    A student that learns from transcripts is still judged by what was said, where that is known.
    """
    from rkd import assemble
    from rkd.evaluate import validation_wer
    from rkd.transcripts import texts_of

    n, seconds = node["trainer"]["validate_utterances"], node["trainer"]["batch_seconds"]
    references = list(texts_of(store, None if store.labelled else transcripts))
    heard = assemble.validation_set(store, references, corruption, n, seconds, node["seed"], device)
    compared = normaliser(plan.cfg["scoring"]["normaliser"])
    return lambda student: validation_wer(student, heard, compared)


def live_outputs(
    loss: dict[str, Any], terms: dict[str, Any], teachers: Sequence[Any], device: torch.device
) -> Callable[[Batch], Sequence[Streams]]:
    """Bring the teachers to the device, frozen; return what gives their streams for a batch, if a term asks for any."""
    import torch

    from rkd import assemble

    for teacher in teachers:
        teacher.to(device).eval().requires_grad_(False)
    if not any(map(asks_teacher, loss["terms"].values())):
        return lambda batch: []
    noisy = loss.get("teacher_input") == "noisy"
    frames_alone = [all(map(of_frames, read)) for read in assemble.streams_read(terms, len(teachers))]

    @torch.no_grad()
    def outputs(batch: Batch) -> Sequence[Streams]:
        heard_BT = batch.noisy_BT if noisy else batch.clean_BT
        told = [batch.without_labels() if frames else batch for frames in frames_alone]
        return [b.through(teacher, heard_BT) for teacher, b in zip(teachers, told, strict=True)]

    return outputs


def check_words(tokenizer: Any, texts: Iterable[str | None], stage: str) -> None:
    """Say which words of texts a vocabulary cannot write.

    Raises:
        DataError: it can write none of them.
    """
    from rkd.tokenizer import lost_words

    lost, n_words = lost_words(tokenizer, filter(None, texts))
    role = "teacher" if stage == "train-teacher" else "student"
    said = (
        f"the {role}'s vocabulary cannot write {len(lost)} of the corpus's {n_words} words, such as "
        f"{', '.join(lost[:3])}; {role}.vocabulary=corpus makes one that can"
    )
    if lost and len(lost) == n_words:
        raise DataError(said)
    if lost:
        warn(said)


def prompted(asked: dict[str, Any], store: Store, student: Any, transcripts: dict[str, Transcript]) -> Prompted | None:
    """Return the labels with timestamps, and what a student is told before, as far as ``transcripts`` asks for them."""
    from rkd.data.batches import Prompted
    from rkd.tokenizer import encode_timed
    from rkd.transcripts import texts_before

    if not (asked["timestamps"] or asked["text_before"]):
        return None
    timed = {n: t.timed for n, t in transcripts.items() if t.timed} if asked["timestamps"] else {}
    told = texts_before(store.ids, store.speakers, {n: t.text for n, t in transcripts.items()})
    if asked["text_before"] and not told:
        warn(
            "transcripts.text_before changes nothing: no utterance of the corpus is known to follow one of its speaker"
        )
    return Prompted(
        asked["timestamps"],
        [encode_timed(student.tokenizer, timed[name]) if name in timed else None for name in store.ids],
        asked["text_before"],
        [student.told(told[name]) if asked["text_before"] and name in told else [] for name in store.ids],
    )
