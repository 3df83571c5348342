"""The device and precision of a training, and what the ranks of a run agree on."""

import os
import subprocess
import sys

import pytest
import torch

from rkd import ranks
from rkd.errors import ResourceError

WAIT = """
from datetime import timedelta
from pathlib import Path

from rkd import ranks
ranks.wait_for_all("cpu")
import torch.distributed as dist
assert dist.distributed_c10d._get_default_group()._get_backend(__import__("torch").device("cpu")).options._timeout \\
    > timedelta(hours=24)
said = ranks.of_first("first" if ranks.is_main() else "other", "cpu")
with ranks.turn(False, "cpu") as own:
    if own:  # while the first works alone, what would be the work of all is its own
        with ranks.turn(True, "cpu"):
            assert ranks.world_size() == 1 and ranks.of_first("mine", "cpu") == "mine"
with ranks.turn(True, "cpu") as together:
    assert together and ranks.world_size() == 2
Path(__file__).with_name(f"{ranks.rank()}.txt").write_text(f"{own} {said}")
"""


def test_a_training_may_have_another_precision_than_the_one_before():
    assert ranks.accelerator("cpu", "fp32").mixed_precision == "no"
    accelerator = ranks.accelerator("cpu", "bf16")
    with accelerator.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert ranks.accelerator("cpu", "fp32").mixed_precision == "no"


def test_a_device_that_torch_cannot_use_is_refused(monkeypatch):
    monkeypatch.setattr("rkd.config.devices.cuda_available", lambda: True)
    if not torch.cuda.is_available():  # a driver that is there, but too old for this torch
        with pytest.raises(ResourceError, match="set device=cpu"):
            ranks.accelerator("cuda", "fp32")


def test_alone_there_is_nobody_to_wait_for():
    with ranks.turn(False, "cpu") as own:
        assert own and ranks.of_first([1, 2], "cpu") == [1, 2]
    assert not torch.distributed.is_initialized()


def test_ranks_have_time_and_decide_as_the_first_does(tmp_path):
    (tmp_path / "wait.py").write_text(WAIT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "wait.py")], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["True first", "False first"]
