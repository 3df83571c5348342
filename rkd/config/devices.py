"""CUDA and number formats, asked for without importing torch."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
from pathlib import Path

from rkd.errors import ConfigError, ResourceError

_COMPUTE_CAPABILITY_MAJOR = 75  # CUdevice_attribute


def cuda_available() -> bool:
    """Say whether torch would find a CUDA device: a driver with a visible device, and a torch built for CUDA."""
    return _compute_capability(os.environ.get("CUDA_VISIBLE_DEVICES")) is not None


def resolve_device(device: str) -> str:
    """Return "cpu" or "cuda" for auto | cpu | cuda; ResourceError where CUDA is asked for and missing."""
    if device == "cuda" and not cuda_available():
        raise ResourceError("device=cuda, but no CUDA device is to be found (driver, CUDA_VISIBLE_DEVICES, or a torch "
                            "built without CUDA): use device=cpu")  # fmt: skip
    return ("cuda" if cuda_available() else "cpu") if device == "auto" else device


def resolve_precision(value: str, device: str) -> str:
    """Return fp32, bf16 or fp16 for auto | fp32 | bf16 | fp16 on a device auto | cpu | cuda.

    auto is bf16 on a CUDA device that computes in it (capability 8 and above), else fp32. ConfigError for fp16 on a
    CPU; ResourceError for bf16 on a device that lacks it, and for device=cuda without one.
    """
    device = resolve_device(device)
    if device == "cpu":
        if value == "fp16":
            raise ConfigError("precision=fp16 needs a CUDA device: use precision=bf16 or precision=fp32")
        return "fp32" if value == "auto" else value
    has_bf16 = (_compute_capability(os.environ.get("CUDA_VISIBLE_DEVICES")) or 0) >= 8
    if value == "bf16" and not has_bf16:
        raise ResourceError("precision=bf16: this GPU does not compute in bf16: use precision=fp16 or precision=fp32")
    if value == "auto":
        return "bf16" if has_bf16 else "fp32"
    return value


@functools.cache
def _compute_capability(visible: str | None) -> int | None:
    """Return the major compute capability of the first CUDA device, or None without one."""
    if (visible is not None and visible.strip() in ("", "-1")) or not _torch_has_cuda():
        return None
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    count, device, major = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device):
        return None
    return major.value


def _torch_has_cuda() -> bool:
    """Read from torch's own version file whether it was built for CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return not version.is_file() or re.search(r"^cuda\b.*= *None$", version.read_text(), re.MULTILINE) is None
