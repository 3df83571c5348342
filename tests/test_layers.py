"""Data flows down the list of modules: a module imports only from those above it."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rkd

ROOT = Path(rkd.__file__).parent
# A name without a dot stands for a module, or for a folder with all that is in it.
LAYERS = [
    "errors", "interrupts", "normalisation", "draws", "console", "processes", "phases", "config", "ranks", "hub",
    "audio", "masks", "features", "noise", "effects", "data", "tokenizer", "models", "targets", "losses", "metrics",
    "transcripts", "training", "evaluate", "report", "assemble", "status", "runs", "stages", "commands", "sweep",
    "cli", "__main__",
]  # fmt: skip
TORCH_FREE = [
    "errors", "interrupts", "normalisation", "draws", "console", "config", "phases", "hub", "status", "commands", "cli"
]  # fmt: skip
BUILDERS = ["check", "listen"]  # commands that make models or mixtures
FILES = sorted(f for f in ROOT.rglob("*.py") if f != ROOT / "__init__.py")


def layer(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Yield every module that is imported anywhere in a file, inside functions too, and names imported from rkd."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: imports are absolute"
            yield from [] if node.module == "rkd" else [node.module or ""]
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # which may be modules


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_a_module_imports_only_from_those_above_it(file):
    own = layer(file)
    assert own in LAYERS, f"{own} has no place in the list of modules"
    used = {name.split(".")[1] for name in imports(file) if name.startswith("rkd.")} - {"__version__"}
    assert used <= set(LAYERS[: LAYERS.index(own) + 1]), f"{file.name} imports from below"


def test_no_modules_import_each_other_in_a_loop():
    names = {"rkd." + ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES}
    sorter = graphlib.TopologicalSorter(
        {name: {used for used in imports(file) if used in names and used != name} for name, file in names.items()}
    )
    assert set(sorter.static_order()) == set(names)  # raises CycleError with the loop


@pytest.mark.parametrize(
    "file", [f for f in FILES if layer(f) in TORCH_FREE and f.stem not in BUILDERS], ids=lambda f: f.stem
)
def test_what_runs_before_a_stage_names_no_torch(file):
    assert not {name.split(".")[0] for name in imports(file)} & {"torch", "torchaudio", "transformers", "accelerate"}
