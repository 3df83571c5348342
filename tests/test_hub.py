"""Pretrained models found without torch: local folders, the hub's cache, and a hub that is served from this machine."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pretrained import ctc_folder, whisper_folder
from safetensors.numpy import save_file

from rkd import hub
from rkd.config import compose
from rkd.errors import CheckpointError, ConfigError
from rkd.stages.plan import Existing, Plan, Pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TYPES = ["wav2vec2"]
ROOT = str(Path(hub.__file__).parents[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as it was published: with files of other libraries beside the model."""
    folder = ctc_folder(tmp_path_factory.mktemp("models") / "base")
    (folder / "tf_model.h5").write_bytes(b"0" * 1000)
    (folder / "model.fp32-00001-of-00002.safetensors").write_bytes(b"0" * 1000)
    (folder / "README.md").write_text("what it is")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """A hub with one repository, acme/base: what the library asks for of the real one's interface."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def answer(self, body: bytes, **headers: str) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/acme/base"):
                files = [{"rfilename": f.name} for f in sorted(folder.iterdir())]
                if "/tree/" in path:
                    tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name}
                            for f in sorted(folder.iterdir())]  # fmt: skip
                    return self.answer(json.dumps(tree).encode(), Content_Type="application/json")
                info = {"id": "acme/base", "modelId": "acme/base", "sha": COMMIT, "siblings": files, "tags": [],
                        "private": False, "downloads": 0, "likes": 0}  # fmt: skip
                return self.answer(json.dumps(info).encode(), Content_Type="application/json")
            if path.startswith(f"/acme/base/resolve/{COMMIT}/") and (file := folder / Path(path).name).is_file():
                body = file.read_bytes()
                return self.answer(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def cached(cache: Path, folder: Path, **left_out) -> Path:
    """Lay a model into a hub cache, as a download does."""
    snapshot = cache / "models--acme--base" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (cache / "models--acme--base" / "refs").mkdir()
    (cache / "models--acme--base" / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hub_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_a_folder_is_known_by_its_files(folder, tmp_path):
    found = hub.find(str(folder), "main", TYPES, "teacher.source")
    assert found.complete and found.repository is None
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / "README.md").write_text("another text")
    (copy / "tf_model.h5").unlink()
    assert hub.find(str(copy), "main", TYPES, "teacher.source").identity == found.identity
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    assert hub.find(str(copy), "main", TYPES, "teacher.source").identity != found.identity


@pytest.mark.parametrize("lost, said", [
    ("config.json", "config.json"), ("model.safetensors", "weights"), ("vocab.json", "tokenizer"),
    ("preprocessor_config.json", "preprocessor_config.json"),
])  # fmt: skip
def test_half_a_model_is_named(folder, tmp_path, lost, said):
    copy = shutil.copytree(folder, tmp_path / "half")
    (copy / lost).unlink()
    with pytest.raises(CheckpointError, match=rf"teacher\.source=.*half is not a whole model: it has no {said}"):
        hub.find(str(copy), "main", TYPES, "teacher.source")


@pytest.mark.parametrize("lost", ["generation_config.json", "tokenizer_config.json"])
def test_what_whisper_alone_needs_is_named(tmp_path, lost):
    folder = whisper_folder(tmp_path / "whisper")
    (folder / lost).unlink()
    with pytest.raises(CheckpointError, match=f"it has no {lost}"):
        hub.find(str(folder), "main", ["whisper"], "teacher.source")
    with pytest.raises(CheckpointError, match=f"it has no {lost}"):
        Existing(str(folder))


def test_a_vocabulary_of_the_corpus_needs_no_tokenizer(tmp_path):
    folder = ctc_folder(tmp_path / "base")
    for name in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    assert hub.find(str(folder), "main", TYPES, "student.source", with_tokenizer=False).complete
    overrides = ["student=wav2vec2-base-960h", f"student.source={folder}", "loss=supervised"]
    with pytest.raises(CheckpointError, match="vocabulary=corpus needs none"):
        Plan(compose("distill", overrides), "distill").student()
    assert Plan(compose("distill", [*overrides, "student.vocabulary=corpus"]), "distill").student().state == "missing"


@pytest.mark.parametrize(
    "harm", [lambda b: b[:5000], lambda b: b + b"x", lambda b: b[:5], lambda b: b"", lambda b: b"\xff" * 99]
)
def test_weights_of_another_length_than_their_header_tells_are_refused(folder, tmp_path, harm):
    copy = shutil.copytree(folder, tmp_path / "cut")
    hub.check_length(copy / "model.safetensors")
    (copy / "model.safetensors").write_bytes(harm((copy / "model.safetensors").read_bytes()))
    for look in (lambda: hub.find(str(copy), "main", TYPES, "teacher.source"), lambda: Existing(str(copy))):
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            look()
    (copy / "model.fp32-00001-of-00002.safetensors").unlink()
    (copy / "rkd.json").write_text(json.dumps({"family": "hubctc", "window_seconds": 30, "shape": {}}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        Existing(str(copy))


def test_a_recogniser_that_wears_a_denoiser_is_taken_and_looked_at(tmp_path):
    card = {"family": "ctc", "window_seconds": 4, "shape": {}}
    (tmp_path / "rkd.json").write_text(json.dumps({"family": "enhanced", "mixing": 1.0, "recogniser": card}))
    for part in ("recogniser", "denoiser"):
        (tmp_path / part).mkdir()
        save_file({"w": np.zeros(3)}, tmp_path / part / "model.safetensors")
    assert Existing(str(tmp_path)).state == "done"
    cut = tmp_path / "denoiser" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"denoiser.model\.safetensors is damaged"):
        Existing(str(tmp_path))


@pytest.mark.parametrize("card", ["{}", "[]", '{"family": "ctc"}'])
def test_a_card_that_says_too_little_is_damaged(tmp_path, card):
    (tmp_path / "rkd.json").write_text(card)
    with pytest.raises(CheckpointError, match=r"rkd\.json is damaged: it does not tell the (family|window_seconds);"):
        Existing(str(tmp_path))


def test_a_missing_shard_is_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "shards")
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        hub.find(str(copy), "main", TYPES, "student.source")


def test_another_kind_of_model_is_refused(folder):
    with pytest.raises(
        CheckpointError, match=r"student.source.*is a wav2vec2 model, not whisper; choose another student="
    ):
        hub.find(str(folder), "main", ["whisper"], "student.source")


@pytest.mark.parametrize("source", ["/no/such/folder", "./folder", "a/b/c", "two words"])
def test_what_is_neither_folder_nor_hub_id(source):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        hub.find(source, "main", TYPES, "teacher.source")


def test_the_cache_is_asked_before_the_hub(folder, cache, monkeypatch):
    snapshot = cached(cache, folder)
    monkeypatch.setattr(hub, "_ask", lambda *_: pytest.fail("asked the hub"))
    for revision in ("main", COMMIT):
        found = hub.find("acme/base", revision, TYPES, "teacher.source")
        assert (found.folder, found.commit, found.complete) == (snapshot, COMMIT, True)
        assert found.identity == {"repository": "acme/base", "commit": COMMIT}
    (snapshot / "model.safetensors").unlink()
    assert not hub.find("acme/base", "main", TYPES, "teacher.source").complete


def test_a_commit_is_the_fingerprint(folder, cache):
    cached(cache, folder)
    overrides = ["teacher=wav2vec2-base-960h", "teacher.source=acme/base"]

    def hash_of(*more):
        cfg = compose("train-teacher", [*overrides, *more])
        return Plan(cfg, "train-teacher").teacher().hash

    assert hash_of() == hash_of(f"teacher.revision={COMMIT}")
    assert hash_of() != hash_of(f"teacher.revision={COMMIT[::-1]}")


def test_never_build_never_asks(cache, monkeypatch):
    monkeypatch.setattr(hub, "_ask", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError, match=r"build=never, but teacher\.source=acme/base"):
        cfg = compose("train-teacher", ["teacher=wav2vec2-base-960h", "teacher.source=acme/base", "build=never"])
        Plan(cfg, "train-teacher").targets()


def test_language_and_window_make_another_teacher(tmp_path):
    folder = whisper_folder(tmp_path / "whisper")
    hashes = set()
    for change in ("teacher.language=en", "teacher.language=de", "teacher.window=trimmed", "teacher.task=translate"):
        cfg = compose("train-teacher", ["teacher=whisper-tiny", f"teacher.source={folder}", change])
        step = Plan(cfg, "train-teacher").teacher()
        assert isinstance(step, Pretrained) and step.state == "done" and step.folder == folder
        hashes.add(step.hash)
    assert len(hashes) == 4


def rkd(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "rkd", *arguments], cwd=folder, capture_output=True, text=True, timeout=100,
        # The hub here is a local one, so it may be asked even where the machine is told to stay offline.
        env={**os.environ, "PYTHONPATH": ROOT, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0", **environment},
    )  # fmt: skip


TEACHER = ("train-teacher", "teacher=wav2vec2-base-960h", "teacher.source=acme/base")


def test_downloaded_once(server, tmp_path):
    endpoint, asked = server
    done = rkd(tmp_path, *TEACHER, HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    snapshot = Path(done.stdout.strip())
    assert "download " in done.stderr and "to build" in done.stderr and snapshot.name == COMMIT
    assert {f.name for f in snapshot.iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "special_tokens_map.json",
        "tokenizer_config.json", "vocab.json",
    }  # fmt: skip
    assert not list((tmp_path).glob("runs/*"))
    asked.clear()
    again = rkd(tmp_path, *TEACHER, HF_ENDPOINT=endpoint)
    assert again.stdout == done.stdout and "nothing to do" in again.stderr and not asked


@pytest.mark.parametrize("environment, said", [
    ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot get acme/base from the hub"),
    ({"HF_HUB_OFFLINE": "1"}, "cannot get acme/base from the hub"),
])  # fmt: skip
def test_no_hub_is_a_line(tmp_path, environment, said):
    done = rkd(tmp_path, *TEACHER, **environment)
    assert done.returncode == 5 and not done.stdout and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr and "teacher.source=/path/to/model" in done.stderr


def test_no_such_repository_is_a_line(server, tmp_path):
    done = rkd(tmp_path, *TEACHER[:2], "teacher.source=acme/nothing", HF_ENDPOINT=server[0])
    assert done.returncode == 5 and len(done.stderr.strip().splitlines()) == 1 and "acme/nothing" in done.stderr


def test_torch_stays_away(folder, tmp_path):
    code = (
        "import sys; from rkd.cli import main\n"
        f"try: main(['train-teacher', 'teacher=wav2vec2-base-960h', 'teacher.source={folder}'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": ROOT})  # fmt: skip
    assert done.returncode == 0 and str(folder) in done.stdout, done.stderr
