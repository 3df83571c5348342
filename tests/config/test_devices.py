"""What the device and the precision are, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rkd
from rkd.config import cuda_available, devices, resolve_precision
from rkd.errors import ConfigError, ResourceError


def test_precision_follows_the_device(monkeypatch):
    devices._compute_capability.cache_clear()
    monkeypatch.setattr(devices, "_compute_capability", lambda visible: None)
    assert resolve_precision("auto", "auto") == resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    with pytest.raises(ConfigError, match="fp32"):
        resolve_precision("fp16", "cpu")
    with pytest.raises(ResourceError, match="device=cpu"):
        resolve_precision("auto", "cuda")
    monkeypatch.setattr(devices, "_compute_capability", lambda visible: 9)
    assert [resolve_precision(p, "auto") for p in ("auto", "fp32", "fp16", "bf16")] == [
        "bf16",
        "fp32",
        "fp16",
        "bf16",
    ]
    monkeypatch.setattr(devices, "_compute_capability", lambda visible: 7)
    assert resolve_precision("auto", "cuda") == "fp32"
    with pytest.raises(ResourceError, match="fp16"):
        resolve_precision("bf16", "cuda")


def test_no_visible_device_is_no_device(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not cuda_available()


def test_cuda_is_seen_as_torch_sees_it():
    import torch

    assert cuda_available() == torch.cuda.is_available()


def test_configuration_is_composed_without_torch():
    code = (
        "import sys; from rkd import config\n"
        "c = config.compose('evaluate', []); config.fingerprint(c); config.resolve_precision('auto', 'auto')\n"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rkd.__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout == "[]\n"
