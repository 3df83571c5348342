"""What a checkpoint holds of a training."""

import torch

from rkd.training.state import random_state, set_random_state


def test_each_rank_gets_its_own_random_state_back():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(random_state(torch.device("cpu")))
    expected = torch.rand(3)
    set_random_state(torch.stack(states)[1], torch.device("cpu"))  # as gathered: a part of a larger tensor
    assert torch.equal(torch.rand(3), expected)
