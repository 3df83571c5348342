"""What teachers say of a corpus, computed once for all students that learn from it.

It is computed by the first student that asks for it, once that student is made: which layers are asked for depends on
how many it has.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from rkd import ranks
from rkd.config.teaching import LOGITS, check_codebooks, live_because, of_frames, stored_inputs, teacher_terms
from rkd.console import say, track, warn
from rkd.interrupts import stopped_by_signals
from rkd.runs import Step, held, recorded, write_json

if TYPE_CHECKING:
    from rkd.data.batches import Batches, Labels
    from rkd.stages.plan import Plan
    from rkd.targets import StoredTeacher
    from rkd.transcripts import Transcript

# ---- whether they are stored ----


def seldom_heard(plan: Plan) -> str | None:
    """Say it where a training hears less than the corpus once: to store all of it would cost more than it saves."""
    from rkd.audio import RATE_HZ
    from rkd.data.store import Store

    trainer = plan.cfg["trainer"]
    heard_seconds = trainer["steps"] * trainer["accumulate"] * trainer["batch_seconds"]
    corpus_seconds = Store.open(plan.speech.folder, "train").n_samples.sum() / RATE_HZ
    if not teacher_terms(plan.cfg) or heard_seconds >= corpus_seconds:
        return None
    return f"{heard_seconds:.0f} s of batches are less than the corpus's {corpus_seconds:.0f} s"


def too_much(
    plan: Plan, teachers: Sequence[StoredTeacher], wanted: Sequence[Sequence[str]], student: Any, n_tokens: int
) -> str | None:
    """Say why outputs that could be stored by their kind are too many, now that all is known that decides it.

    Raises:
        ConfigError: a hidden layer cannot be cut into so many pieces as there are to be codebooks.
    """
    from rkd.data.store import Store
    from rkd.tokenizer import difference

    n_samples, n_bytes = int(Store.open(plan.speech.folder, "train").n_samples.sum()), 0
    settings = plan.cfg["targets"]
    for teacher, streams in zip(teachers, wanted, strict=True):
        how = difference(teacher.tokenizer, student.tokenizer) if set(streams) & set(LOGITS) else None
        if how and len(teacher.tokenizer) > settings["k"]:
            return f"of a teacher of another vocabulary ({how}) all logits are needed"
        for stream in streams:
            if stream in LOGITS:
                continue
            if of_frames(stream) and teacher.stride is None:
                return f"how many frames {stream} has is not known"
            n_steps = n_samples // teacher.stride if of_frames(stream) else n_tokens
            check_codebooks(settings["codebooks"], teacher.width)
            n_bytes += n_steps * (settings["codebooks"] or 2 * teacher.width)
    if n_bytes > settings["max_bytes"]:
        return f"hidden layers of {n_bytes / 1e9:.3g} GB are more than targets.max_bytes={settings['max_bytes']:.3g}"
    return None


# ---- the teachers of a student ----


def student_teachers(plan: Plan) -> list[Any]:
    """Return the teachers of a student: models, or where these need not be loaded what else is known of them."""
    from rkd import assemble
    from rkd.targets import StoredTeacher

    if not plan.needs_teacher:
        return []
    if why := live_because(plan.cfg) or seldom_heard(plan):
        say_live(plan, why)
        return [assemble.teacher_model(step.folder, plan.cfg) for step in plan.teachers()]
    return [StoredTeacher(described(plan, step)) for step in plan.teachers()]


def say_live(plan: Plan, why: str) -> None:
    """Say why teachers are loaded, where a loss asks what they say."""
    if teacher_terms(plan.cfg):
        say(f"  the teacher hears every batch: {why}")


def described(plan: Plan, teacher: Step) -> Path:
    """Return the folder that tells of a teacher; the teacher is loaded for it once."""
    from rkd import assemble
    from rkd.targets import describe

    step = plan.description(teacher)
    with held(step, wait=True), ranks.turn(False, plan.cfg["device"]) as own:
        if own and step.state != "done":
            with recorded(step, OmegaConf.to_yaml(plan.cfg), []) as folder:
                describe(assemble.teacher_model(teacher.folder, plan.cfg), folder)
    return step.folder


def with_outputs(
    plan: Plan, teachers: Sequence[Any], student: Any, transcripts: Mapping[str, Transcript] | None
) -> list[Any]:
    """Return the teachers with the streams that the student's loss compares with, or loaded where these are too many.

    Args:
        transcripts: by utterance id, where they are the labels.
    """
    from rkd import assemble
    from rkd.data.store import Store
    from rkd.targets import StoredTeacher
    from rkd.transcripts import labels_of

    if not teacher_terms(plan.cfg) or not all(isinstance(teacher, StoredTeacher) for teacher in teachers):
        return list(teachers)
    shares = assemble.teacher_shares(len(teachers), plan.cfg["teacher"]["weights"])
    terms, _ = assemble.terms(plan.cfg["loss"], student, teachers, shares, plan.cfg["trust"])
    wanted = assemble.streams_read(terms, len(teachers))
    store = Store.open(plan.speech.folder, "train")
    labels = [labels_of(store, transcripts, teacher.tokenizer) for teacher in teachers]
    if why := too_much(plan, teachers, wanted, student, labels[0].n_tokens):
        say_live(plan, why)
        return [assemble.teacher_model(step.folder, plan.cfg) for step in plan.teachers()]
    given = plan.transcription() if transcripts else None
    for teacher, step, streams, own in zip(teachers, plan.teachers(), wanted, labels, strict=True):
        steps = {stream: plan.stored_outputs(step, stream, given) for stream in streams}
        build_missing(plan, step, steps, own)
        teacher.read({stream: made.folder for stream, made in steps.items()}, store.ids, own)
    outputs = [targets for teacher in teachers for targets in teacher.outputs]
    n_bytes = sum(targets.n_bytes for targets in outputs)
    kinds = ", ".join(dict.fromkeys(targets.card.stream for targets in outputs))
    say(f"  no teacher is loaded: {kinds} are read from {plan.root / 'targets'} ({n_bytes / 1e6:.3g} MB)")
    return list(teachers)


# ---- storing ----


def build_missing(plan: Plan, teacher: Step, steps: Mapping[str, Step], labels: Labels) -> None:
    """Write the streams of a teacher that are not stored yet, all in one pass; every rank does a share of it."""
    device = plan.cfg["device"]
    with ExitStack() as stack:
        for step in sorted(steps.values(), key=lambda step: step.folder):  # two runs wait for each other in one order
            stack.enter_context(held(step, wait=True))
        stack.enter_context(ranks.turn(True, device))
        there = ranks.of_first([step.state == "done" for step in steps.values()], device)
        missing = {stream: step for (stream, step), done in zip(steps.items(), there, strict=True) if not done}
        if not missing:
            return
        config_yaml = OmegaConf.to_yaml(plan.cfg)
        folders = {n: stack.enter_context(recorded(step, config_yaml, [])) for n, step in missing.items()}
        started = time.monotonic()
        with stopped_by_signals():
            n = write_share(plan, teacher, folders, labels)
        ranks.wait_for_all(device)
        rest = len(labels) - n
        after = (
            f"; the other {rest} were there" if rest else ", which every further epoch, seed, noise and student saves"
        )
        say(f"  {', '.join(folders)} of {n} utterances: stored in {time.monotonic() - started:.1f} s{after}")


def write_share(plan: Plan, teacher: Step, folders: Mapping[str, Path], labels: Labels) -> int:
    """Write this rank's share of a teacher's streams on the clean training speech, given the labels.

    Returns:
        How many utterances all ranks together had to write.
    """
    import torch

    from rkd import assemble
    from rkd.data.batches import Batches
    from rkd.data.store import Store
    from rkd.targets import Writer, open_books, read_card, remove_damaged, stored_rows, written

    cfg = plan.cfg
    accelerator = ranks.accelerator(cfg["device"], cfg["trainer"]["precision"])
    model = assemble.teacher_model(teacher.folder, cfg).to(accelerator.device).eval().requires_grad_(False)
    store = Store.open(plan.speech.folder, "train")
    rank, world = accelerator.process_index, accelerator.num_processes
    coded = {n: f for n, f in folders.items() if "codebooks" in stored_inputs(cfg, n)}
    batches = Batches(store, labels, cfg["trainer"]["batch_seconds"], 0)
    if rank == 0:
        with torch.no_grad(), accelerator.autocast():
            write_cards(model, batches, folders, cfg)
            learn_books(model, batches, coded, cfg["targets"]["codebooks"])
        for path in [path for folder in folders.values() for path in remove_damaged(folder)]:
            warn(f"{path} is damaged, and is made again")
    ranks.wait_for_all(cfg["device"])
    done = {stream: written(folder) for stream, folder in folders.items()}
    lacking = [name for name in store.ids if any(name not in ids for ids in done.values())]
    if len(lacking) < len(store):
        say(f"  {len(store) - len(lacking)} of {len(store)} utterances are there already")
    cards = {name: read_card(folder) for name, folder in folders.items()}
    books = {name: open_books(folder).to(accelerator.device) for name, folder in coded.items()}
    share = set(store.ids[rank::world]).intersection(lacking)
    with ExitStack() as stack, torch.no_grad(), accelerator.autocast():
        writers = {n: stack.enter_context(Writer(folder, rank)) for n, folder in folders.items()}
        for batch in track(
            (b.to(accelerator.device) for b in batches.once(share)), "  utterances", len(share), lambda b: len(b.ids)
        ):
            streams = batch.through(model, batch.clean_BT)
            for name, card in cards.items():
                stream = streams[name]
                rows = stored_rows(stream, card, batch.draws, books.get(name))
                for utterance, n in zip(batch.ids, stream.lengths_B.tolist(), strict=True):
                    if utterance not in done[name]:
                        writers[name].add(utterance, rows[:n])
                    rows = rows[n:]
    return len(lacking)


def write_cards(model: Any, batches: Batches, folders: Mapping[str, Path], cfg: Mapping[str, Any]) -> None:
    """Write what the rows of a teacher's streams are, as it gives them for an utterance that has labels."""
    import numpy as np

    from rkd.targets import CARD, Card

    assert batches.labels is not None
    first = next(i for i, own in enumerate(batches.labels) if own is not None)
    batch = batches.collate(0, np.array([first])).to(next(model.parameters()).device)
    streams = batch.through(model, batch.clean_BT)
    for name, folder in folders.items():
        stream = streams[name]
        card = Card(stride=stream.stride, n_outputs=stream.n_outputs, **stored_inputs(cfg, name))
        write_json(folder / CARD, vars(card))


def learn_books(model: Any, batches: Batches, folders: Mapping[str, Path], n_codebooks: int) -> None:
    """Write the codebooks of a teacher's hidden layers that have none, or none that a part was written with.

    They are learned from some utterances, always the same.
    """
    import numpy as np
    import torch

    from rkd.targets import BOOKS, codebooks, fits

    lacking = {n: folder / BOOKS for n, folder in folders.items() if not ((folder / BOOKS).exists() and fits(folder))}
    if not lacking:
        return
    rows: dict[str, list[Any]] = {name: [] for name in lacking}
    device = next(model.parameters()).device
    for index in batches.epoch(0):
        if all(sum(map(len, found)) >= codebooks.LEARNED_FROM for found in rows.values()):
            break
        batch = batches.collate(0, index).to(device)
        streams = batch.through(model, batch.clean_BT)
        for name, found in rows.items():
            found.append(streams[name].project(streams[name].rows(streams[name].mask())).float())
    for name, path in lacking.items():
        book_CKd = codebooks.learn(torch.cat(rows[name])[: codebooks.LEARNED_FROM], n_codebooks, name)
        new = path.with_suffix(".new.npy")
        np.save(new, book_CKd.cpu().numpy())
        new.replace(path)
