"""evaluate: student, teacher and other systems on the same mixtures."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd import ranks
from rkd.console import console, say, warn
from rkd.errors import DataError
from rkd.normalisation import normaliser
from rkd.processes import usable_cores
from rkd.runs import environment
from rkd.stages.transcription import transcripts

if TYPE_CHECKING:
    from rkd.stages.plan import Plan


# Of utterances.parquet: a row for each system, condition and utterance.
COLUMNS = {
    "system": "string", "condition": "string", "noise": "string", "seen": "bool", "snr_db": "float64", "room": "string",
    "id": "string", "reference": "string", "hypothesis": "string", "errors": "int64", "n_words": "int64",
}  # fmt: skip


def build_evaluation(plan: Plan, folder: Path) -> None:
    """Compare the systems on the same mixtures; write the table and the report."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from rkd.data.batches import Batches
    from rkd.data.store import Store
    from rkd.evaluate import evaluate
    from rkd.metrics import pesq_available
    from rkd.models.base import count_parameters
    from rkd.models.enhanced import family_of
    from rkd.report import print_table, write_report

    cfg, settings = plan.cfg, plan.cfg["evaluate"]
    device = ranks.torch_device(cfg["device"])
    store = Store.open(plan.speech.folder, "test")
    models = systems(plan, device)
    warnings = (
        [] if pesq_available() else ["PESQ was not measured: the pesq package is not installed (it needs a C compiler)"]
    )
    conditions = build_conditions(plan, store, device, warnings)
    teacher = next((model for _, (role, model) in models.items() if role == "teacher"), None)
    written = transcripts(plan, teacher)
    normalise = normaliser(cfg["scoring"]["normaliser"])
    references = {
        name: normalise(written[name].text if written else text or "")
        for name, text in zip(store.ids, store.texts, strict=True)
    }
    for line in warnings:
        warn(line)
    batches = Batches(store, None, settings["batch_seconds"], settings["seed"])
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    by_utterance = folder / "utterances.parquet"
    with pq.ParquetWriter(by_utterance, schema) as table:
        rows, hashes, rtf = evaluate(
            {name: model for name, (_, model) in models.items()},
            conditions,
            batches,
            settings["max_utterances"],
            references,
            normalise,
            device,
            settings["beams"],
            settings["quality_utterances"],
            usable_cores(),
            lambda found: table.write_table(pa.Table.from_pylist(found, schema)),
        )
    results = {
        "name": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "reference": "teacher transcripts" if written else "text",
        "warnings": warnings,
        "systems": [
            {
                "name": name, "role": role, "family": family_of(model), "params": count_parameters(model),
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
    kept = (row for batch in pq.ParquetFile(by_utterance).iter_batches() for row in batch.to_pylist())
    report = write_report(folder, results, kept)
    print_table(results, console())
    say(f"report: {report}")


def systems(plan: Plan, device: Any) -> dict[str, tuple[str, Any]]:
    """Return the systems to compare by name, each with its role and its model, ready to transcribe."""
    from rkd import assemble
    from rkd.models.enhanced import with_padding

    found = [(f"student {plan.student().folder.name}", "student", plan.student().folder)]
    for path in plan.cfg["evaluate"]["systems"]:
        name = Path(path).resolve().name if Path(path).name != "model" else Path(path).resolve().parent.name
        found.append((name if all(name != other for other, _, _ in found) else str(path), "baseline", Path(path)))
    models = {}
    for name, role, path in found:
        model = assemble.saved_model(path, plan.cfg).to(device).eval()
        models[name] = (role, model)
        # One that learned on trimmed clips is given them with silence up to its window by all other programs.
        if plan.cfg["evaluate"]["padded"] and (heard := with_padding(model)) is not None:
            models[f"{name}, padded to {model.window_seconds} s"] = ("baseline", heard)
    teachers: dict[str, tuple[str, Any]] = {}
    for step in plan.teachers() if plan.needs_teacher else []:
        name = f"teacher {step.folder.name if step.is_run else step.name}"
        name = name if name not in teachers else f"teacher {step.folder}"
        teachers[name] = ("teacher", assemble.teacher_model(step.folder, plan.cfg).to(device).eval())
    return teachers | models


def build_conditions(plan: Plan, store: Any, device: Any, warnings: list[str]) -> list[Any]:
    """Return what the systems hear; a noise that the test split cannot give is left out and said."""
    import torch

    from rkd import assemble
    from rkd.evaluate import NOISE_ONLY, Condition
    from rkd.noise import Corruption

    cfg, settings = plan.cfg, plan.cfg["evaluate"]
    noise, types = cfg["noise"], plan.evaluation_types()
    heard = assemble.mixed_types(noise)
    banks = plan.bank_folders(types)
    found = assemble.split_rooms(plan.room_folder(settings["rooms"], noise), "test")
    rooms = [torch.tensor(room.response, device=device) for room in found]
    place = " and ".join(sorted({"simulated" if room.simulated else "measured" for room in found}))
    conditions = [Condition("clean")]
    if rooms:
        how = Corruption({}, {}, {"reverb": 1.0}, [], rooms=rooms)
        conditions.append(Condition("reverb", corruption=how, room=place))
    for name, node in types.items():
        trained = name in heard
        # Trained recordings differ in whether their class was trained on; generated noise is one kind.
        for seen in (True, False) if node.get("folder") and trained else (trained,):
            group = seen if node.get("folder") and trained else None
            try:
                kind = assemble.noise_type(node, store, "test", banks, group, device, cfg["trust"])
            except DataError as error:
                if not node.get("folder"):
                    warnings.append(f"not evaluated: {name} ({error})")
                continue
            for snr_db in settings["snr"]:
                for condition, operation, room in (("noise", "noise", None), ("noise+reverb", "both", place))[
                    : 2 if rooms else 1
                ]:
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
                    conditions.append(Condition(condition, name, seen, snr_db, how, room))
            if settings["noise_only"]:
                # At the level that the noise has at 0 dB.
                how = Corruption({name: kind}, {name: 1.0}, {"noise": 1.0}, [0.0], snr_level=noise["snr_level"])
                conditions.append(Condition(NOISE_ONLY, name, seen, 0.0, how))
    return conditions
