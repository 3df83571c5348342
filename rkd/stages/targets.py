"""What a teacher says of a corpus, computed once for all students that learn from it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.config import resolve_device, resolve_precision
from rkd.config.teaching import asks_teacher
from rkd.console import say
from rkd.runs import write_json
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
    from rkd.targets import Card, Writer, stored_rows, written
    from rkd.tokenizer import encode_all

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
    labels = encode_all(teacher.tokenizer, texts)
    done = written(folder)
    if done:
        say(f"  {len(done)} of {len(store)} utterances are there already")
    teacher.tokenizer.save_pretrained(folder / "tokenizer")
    writer = Writer(folder)
    for batch in Batches(store, labels, cfg["trainer"]["batch_seconds"], 0).once(set(store.ids) - done):
        batch = batch.to(accelerator.device)
        with torch.no_grad(), accelerator.autocast():
            stream = batch.through(teacher, batch.clean_BT)[asked["stream"]]
            n_outputs, rows = stored_rows(stream, asked["k"], asked["temperatures"])
        if not (folder / "card.json").is_file():  # before the first part, which counts from then on
            shape = {
                "depth": teacher.depth, "width": teacher.width, "window_seconds": teacher.window_seconds,
                "language": teacher.shape.get("language"),
            }  # fmt: skip
            own = (asked["stream"], stream.stride, n_outputs, asked["k"], asked["temperatures"])
            write_json(folder / "card.json", asdict(Card(*own, shape)))
        for name, n in zip(batch.ids, stream.lengths_B.tolist(), strict=True):
            writer.add(name, rows[:n])
            rows = rows[n:]
    writer.flush()
    say(f"  {sum(f.stat().st_size for f in folder.glob('part-*.npy')) / 1e6:.1f} MB of {asked['stream']}")
