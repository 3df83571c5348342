"""Which keys of the configuration each stage reads."""

from __future__ import annotations

DISTILL_READS = (
    "data", "teacher", "student", "denoiser", "noise", "effects", "loss", "transcripts", "targets", "trainer", "seed",
    "scoring",
)  # fmt: skip
STAGE_READS: dict[str, tuple[str, ...]] = {
    "prepare": (
        "data", "noise", "teacher.noise", "evaluate.types", "evaluate.folder", "evaluate.layout", "evaluate.rooms",
    ),
    "train-teacher": ("data", "teacher", "scoring"),
    "distill": DISTILL_READS,
    "evaluate": (*DISTILL_READS, "evaluate"),
}  # fmt: skip
READ_BY_ALL = (
    "root", "name", "build", "trust", "device", "workers", "prepare_workers", "log_every", "experiment", "launcher",
    "sweeper",
)  # fmt: skip


def reads(stage: str, key: str) -> bool:
    """Say whether a stage reads a dotted key, any part of it or anything above it."""
    return any(key == p or key.startswith(p + ".") for p in STAGE_READS[stage] + READ_BY_ALL)
