"""What a teacher writes of a corpus: labels where it has none, or where they are asked for in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from rkd import ranks
from rkd.console import say, track, warn
from rkd.interrupts import stopped_by_signals
from rkd.normalisation import normaliser
from rkd.runs import held, recorded

if TYPE_CHECKING:
    from rkd.stages.plan import Plan
    from rkd.transcripts import Transcript


def transcripts(plan: Plan, teacher: Any | None, wanted: bool = False) -> dict[str, Transcript] | None:
    """Return the teacher's transcripts of a corpus, made once; None where the corpus has text of its own.

    Args:
        wanted: whether they take the place of the corpus's text.
    """
    from rkd.transcripts import load

    has_text = json.loads((plan.speech.folder / "summary.json").read_text())["has_text"]
    if has_text and not wanted:
        return None
    assert teacher is not None  # see Plan.check_text
    step, device = plan.transcription(), plan.cfg["device"]
    with held(step, wait=True), ranks.turn(True, device):
        if not ranks.of_first(step.state == "done", device):
            with recorded(step, OmegaConf.to_yaml(plan.cfg), []) as folder, stopped_by_signals():
                write_share(plan, teacher, folder)
                ranks.wait_for_all(device)
    return load(step.folder)


def write_share(plan: Plan, teacher: Any, folder: Path) -> None:
    """Write what the teacher hears in this rank's share of the clean speech; a text is empty where it hears nothing."""
    import torch

    from rkd import assemble
    from rkd.data.batches import Batches
    from rkd.data.store import Store
    from rkd.targets import StoredTeacher
    from rkd.transcripts import Writer, load, transcribe

    cfg, asked = plan.cfg, plan.cfg["transcripts"]
    if isinstance(teacher, StoredTeacher):  # whose transcripts have been removed
        teacher = assemble.teacher_model(plan.teacher().folder, cfg)
    accelerator = ranks.accelerator(cfg["device"], cfg["trainer"]["precision"])
    teacher.to(accelerator.device).eval()
    normalise, done = normaliser(cfg["data"]["normaliser"]), load(folder)
    ranks.wait_for_all(cfg["device"])  # every rank knows what is there before more is
    if done:
        say(f"  {len(done)} utterances are transcribed already")
    with Writer(folder, ranks.rank()) as writer:
        for split in ("train", "validation", "test"):
            store = Store.open(plan.speech.folder, split)
            share = set(store.ids[ranks.rank() :: ranks.world_size()]).difference(done)
            batches = Batches(store, None, cfg["trainer"]["batch_seconds"], 0).once(share)
            for batch in track(batches, f"  the teacher transcribes {split}", len(share), lambda b: len(b.ids)):
                batch = batch.to(accelerator.device)
                with torch.no_grad(), accelerator.autocast():
                    written = transcribe(
                        teacher, batch.clean_BT, batch.lengths_B, asked["beams"], asked["timestamps"] > 0
                    )
                writer.add({name: t.normalised(normalise) for name, t in zip(batch.ids, written, strict=True)})


def labels_of_teacher(plan: Plan, written: dict[str, Transcript] | None) -> dict[str, Transcript] | None:
    """Return the teacher's transcripts without those of training utterances that break a limit of ``transcripts``.

    Args:
        written: by utterance id; None where the labels are the corpus's own text.

    Raises:
        DataError: no training utterance is left.
    """
    from rkd.audio import RATE_HZ
    from rkd.data.store import Store
    from rkd.transcripts import FILTERS, Heard, select, told, wer

    asked = plan.cfg["transcripts"]
    limits = {key: asked[key] for key in FILTERS}
    on = [key for key, limit in limits.items() if limit is not None]
    if written is None:
        if idle := [*on, *(key for key in ("timestamps", "text_before") if asked[key])]:
            warn(
                f"transcripts.{idle[0]} changes nothing: the labels are the corpus's own text; add loss.labels=teacher"
            )
        return None
    store = Store.open(plan.speech.folder, "train")
    if limits["max_wer"] is not None and not any(store.texts):
        warn("transcripts.max_wer changes nothing: the corpus has no text to compare with")
    seconds = store.n_samples / RATE_HZ
    compared = normaliser(plan.cfg["scoring"]["normaliser"])
    heard = {
        n: Heard(written[n], s, wer(compared(text or ""), compared(written[n].text)))
        for n, s, text in zip(store.ids, seconds, store.texts, strict=True)
    }
    kept, counts = select(heard, limits)
    if on:
        say(f"  left out: {len(heard) - len(kept)} of {len(heard)} training utterances ({told(counts)})")
    left_out = heard.keys() - set(kept)
    return {name: transcript for name, transcript in written.items() if name not in left_out}
