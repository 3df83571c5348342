"""Small speech, models and trainings that the tests share. Everything is made here; nothing is read from outside."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parent))  # tests.pretrained

import numpy as np
import pytest

WORDS = {"one": 300, "two": 700, "three": 1500, "four": 3100}  # each word is a tone of so many Hz
SPEAKERS = ("ann", "bob", "cyd", "dan")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Keep the cache of file hashes out of the user's."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    return torch.device(request.param)


def speak(text: str, speaker: int, rng: np.random.Generator) -> np.ndarray:
    """Return 'speech': a tone for each word, swelling and fading, a little higher for each speaker."""
    pieces = [np.zeros(int(rng.integers(200, 900)))]
    for word in text.split():
        n = int(rng.integers(2400, 4000))
        t_T = np.arange(n) / 16000
        tone_T = np.sin(2 * np.pi * WORDS[word] * (1 + 0.02 * speaker) * t_T) * np.sin(np.pi * np.arange(n) / n) ** 2
        pieces += [0.3 * tone_T, np.zeros(int(rng.integers(200, 900)))]
    x_T = np.concatenate(pieces)
    return np.round((x_T + 1e-3 * rng.standard_normal(len(x_T))) * 32768).astype(np.int16)


def write_store(folder: Path, sizes: dict[str, int]) -> Path:
    """Write a speech store of 'utterances' of one to four words by four speakers."""
    from rkd.audio import active_level_db, from_pcm16
    from rkd.data.store import StoreWriter, part_path

    rng = np.random.default_rng(0)
    for part, (split, n) in enumerate(sizes.items()):
        with StoreWriter(part_path(folder, part)) as writer:
            for i in range(n):
                text = " ".join(rng.choice(list(WORDS), rng.integers(1, 5)))
                pcm = speak(text, i % 4, rng)
                level_db = active_level_db(from_pcm16(pcm))
                writer.add(f"{split}-{i}", split, text, SPEAKERS[i % 4], "en", "tones", pcm, level_db)
    (folder / "summary.json").write_text('{"has_text": true}')
    return folder


@pytest.fixture(scope="session")
def speech(tmp_path_factory) -> Path:
    """The folder of a speech store: 24 training utterances, 8 to validate, 8 to test, up to 1.3 s long."""
    return write_store(tmp_path_factory.mktemp("speech"), {"train": 24, "validation": 8, "test": 8})


@pytest.fixture
def shared() -> Path:
    """The folder of real recordings."""
    folder = Path(__file__).resolve().parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real recordings in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def store(speech):
    from rkd.data.store import Store

    return Store.open(speech, "train")


@pytest.fixture(scope="session")
def tokenizer():
    from rkd.tokenizer import build_tokenizer

    return build_tokenizer(WORDS)


@pytest.fixture(scope="session")
def pretrained_folders(tmp_path_factory):
    """Folders like the pretrained models', by the type that their configuration names."""
    from pretrained import ctc_folder, whisper_folder

    root = tmp_path_factory.mktemp("pretrained")
    return {"whisper": whisper_folder(root / "whisper"), "wav2vec2": ctc_folder(root / "wav2vec2")}


@pytest.fixture(scope="session")
def make_whisper(tokenizer):
    """Make a tiny Whisper-architecture model, in eval mode."""

    def make(seed=0, window=2, **shape):
        import torch

        from rkd.models.whisper import Whisper

        torch.manual_seed(seed)
        defaults = {
            "d_model": 32, "ffn": 64, "heads": 2, "encoder_layers": 2, "decoder_layers": 1, "n_mels": 16, "hop": 320,
            "dropout": 0.0,
        }  # fmt: skip
        return Whisper(tokenizer, window, **{**defaults, **shape}).eval()

    return make


@pytest.fixture(scope="session")
def make_ctc(tokenizer):
    """Make a tiny CTC model, in eval mode."""

    def make(seed=0, window=2, **shape):
        import torch

        from rkd.models.ctc import CTC

        torch.manual_seed(seed)
        defaults = {"d_model": 32, "ffn": 64, "heads": 2, "encoder_layers": 2, "n_mels": 16, "hop": 320, "dropout": 0.0}
        return CTC(tokenizer, window, **{**defaults, **shape}).eval()

    return make


@pytest.fixture(scope="session")
def make_batches(store, tokenizer):
    from rkd.data.batches import Batches
    from rkd.tokenizer import encode

    labels = [encode(tokenizer, text) for text in store.texts]

    def make(batch_seconds=6.0, seed=0, silence=0.0, window_seconds=2.0, only=0.0, prompted=None):
        no_words = encode(tokenizer, "")
        return Batches(store, labels, batch_seconds, seed, silence, window_seconds, None, only, no_words, prompted)

    return make


@pytest.fixture
def make_settings():
    def make(**changes):
        from rkd.training.settings import Settings

        defaults = {
            "steps": 6, "batch_seconds": 6.0, "accumulate": 1, "learning_rate": 1e-3, "betas": (0.9, 0.98),
            "weight_decay": 0.01, "warmup": 0.2, "schedule": "cosine", "clip_norm": 1.0, "clean": 0.0, "silence": 0.0,
            "precision": "fp32", "validate_every": 3, "validate_utterances": 4, "patience": None, "train": "all",
            "freeze": [], "unfreeze_every": None, "layer_decay": 1.0, "recompute": False, "compile": False,
            "shard": False, "average": None, "adapters": None, "phases": [],
        }  # fmt: skip
        return Settings(**{**defaults, **changes})

    return make


class Watcher:
    """Remembers what a training tells; calls ``at[step]`` when that step is done."""

    def __init__(self, at=None):
        self.at = at or {}
        self.losses: list[dict[str, float]] = []
        self.wers: list[tuple[int, float]] = []
        self.best_wers: list[float] = []

    def update(self, step, losses, audio_seconds):
        self.losses.append(dict(losses))
        self.at.get(step, lambda: None)()

    def validated(self, step, wer, best_wer):
        self.wers.append((step, wer))
        self.best_wers.append(best_wer)


@pytest.fixture
def run_training(make_settings):
    """Run ``rkd.training.trainer.train`` with defaults for all that a test does not care about; return what it told."""

    def run(objective, batches, folder, at=None, corrupt=lambda batch, phase: batch, teach=lambda batch: [], seed=0,
            workers=0, validate=lambda model: 1.0, device="cpu", relabel=None, log_every=1, **settings):  # fmt: skip
        from rkd import ranks
        from rkd.training.trainer import train

        folder.mkdir(exist_ok=True)
        watcher, settings = Watcher(at), make_settings(**settings)
        watcher.best_wer = train(
            objective, batches, corrupt, teach, validate, settings, folder,
            ranks.accelerator(device, settings.precision), watcher, log_every, workers, seed, relabel,
        )  # fmt: skip
        return watcher

    return run


@pytest.fixture(scope="session")
def taught(make_whisper, make_batches):
    """A Whisper-architecture model that has learned the tones, and the utterances it was taught with, as one batch."""
    import torch

    from rkd.losses import CTC, CrossEntropy

    model = make_whisper().train()
    batches = make_batches()
    batch = batches.collate(0, np.arange(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(150):
        streams = model(batch.clean_BT, batch.lengths_B, batch.labels_BL)
        loss = CrossEntropy()(streams, {}, batch) + 0.3 * CTC()(streams, {}, batch)
        optimizer.zero_grad()
        (loss / batch.n_tokens).backward()
        optimizer.step()
    return SimpleNamespace(model=model.eval(), batch=batch)
