"""What a teacher says of a corpus, computed once for all students that learn from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.config import resolve_device, resolve_precision
from rkd.config.teaching import asks_teacher
from rkd.console import say
from rkd.errors import DataError
from rkd.stages.training import transcripts

if TYPE_CHECKING:
    from rkd.stages.plan import Plan

TEMPERATURES = (1.0, 2.0, 4.0)  # besides those of the loss


def target_inputs(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return what the stored outputs depend on, besides the corpus and the teacher."""
    terms = [term for term in cfg["loss"]["terms"].values() if asks_teacher(term)]
    own = {float(term["temperature"]) for term in terms}
    [stream] = {name for term in terms for name in term["teacher"]}
    labels = {"labels": cfg["loss"]["labels"], "beams": cfg["transcripts"]["beams"]}
    return {
        "stream": stream, "k": cfg["targets"]["k"] // 2 * 2, "temperatures": sorted({*TEMPERATURES, *own}),
        "labels": labels if cfg["loss"]["labels"] == "teacher" else "text",
    }  # fmt: skip


def build_targets(plan: Plan, folder: Path) -> None:
    """Write the teacher's outputs on the clean training speech, given the labels."""
    import torch

    from rkd import assemble
    from rkd.data.batches import Batches
    from rkd.data.store import Store
    from rkd.models.base import Projected
    from rkd.targets import Card, Writer, pack, written
    from rkd.tokenizer import encode

    cfg, asked = plan.cfg, target_inputs(plan.cfg)
    device = resolve_device(cfg["device"])
    accelerator = assemble.accelerator(device, resolve_precision(cfg["trainer"]["precision"], device))
    teacher = assemble.teacher_model(plan.teacher().folder, cfg)
    assemble.check_window(plan.speech.folder, teacher)
    assemble.check_language(plan.speech.folder, teacher, "teacher")
    teacher.to(accelerator.device).eval().requires_grad_(False)
    store = Store.open(plan.speech.folder, "train")
    heard = transcripts(plan, teacher, cfg["loss"]["labels"] == "teacher")
    texts = [heard[name].text for name in store.ids] if heard else [text or "" for text in store.texts]
    labels = [encode(teacher.tokenizer, text) for text in texts]
    done = written(folder)
    if done:
        say(f"  {len(done)} of {len(store)} utterances are there already")
    writer, card = Writer(folder), None
    for batch in Batches(store, labels, cfg["trainer"]["batch_seconds"], 0).once(set(store.ids) - done):
        batch = batch.to(accelerator.device)
        with torch.no_grad(), accelerator.autocast():
            stream = batch.through(teacher, batch.clean_BT)[asked["stream"]]
            valid_BN = stream.mask()
            if isinstance(stream, Projected):
                logits_RV = stream.project(stream.hidden_BND[valid_BN])
            else:
                logits_RV = stream.values_BND[valid_BN]
        rows = pack(logits_RV, asked["k"], asked["temperatures"])
        for name, n in zip(batch.ids, stream.lengths_B.tolist(), strict=True):
            writer.add(name, rows[:n])
            rows = rows[n:]
        card = Card(asked["stream"], stream.stride, logits_RV.shape[1], asked["k"], asked["temperatures"], {
            "depth": teacher.depth, "width": teacher.width, "window_seconds": teacher.window_seconds,
            "language": teacher.shape.get("language"),
        })  # fmt: skip
    writer.flush()
    if card:
        (folder / "card.json").write_text(json.dumps(asdict(card)))
        teacher.tokenizer.save_pretrained(folder / "tokenizer")
    say(f"  {sum(f.stat().st_size for f in folder.glob('part-*.npy')) / 1e6:.1f} MB of {asked['stream']}")


class StoredTeacher:
    """What students ask of a teacher whose outputs are stored: all but the model.

    Raises:
        DataError: the targets are damaged, or were made of other labels.
    """

    def __init__(self, folder: Path, ids: list[str]):
        from rkd.targets import Targets
        from rkd.tokenizer import load_tokenizer

        self.targets = Targets(folder, ids)
        shape = self.targets.card.shape
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.depth, self.width, self.window_seconds = shape["depth"], shape["width"], shape["window_seconds"]
        self.shape = {"language": shape["language"]} if shape["language"] else {}
        self.folder = folder

    def check(self, labels: list[list[int] | None]) -> None:
        """Refuse targets of other labels than a student's."""
        if self.targets.card.stride is not None:
            return
        for own, n in zip(labels, self.targets.n_rows.tolist(), strict=True):
            if own is not None and len(own) != n:
                raise DataError(f"the targets in {self.folder} are of other labels; remove the folder, and the same "
                                "command makes them again")  # fmt: skip
