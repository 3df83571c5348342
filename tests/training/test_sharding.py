"""What cannot be divided over the ranks; what can is tested with two of them, in tests/slow/test_ranks.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rkd.errors import ConfigError
from rkd.training.sharding import divided, sharded, whole


def test_a_model_without_layers_is_refused():
    with pytest.raises(ConfigError, match=r"trainer.shard=true: the model has no layers"):
        sharded(nn.Linear(2, 2), torch.device("cpu"), 2)


@pytest.mark.parametrize("key", ["layerdrop", "encoder_layerdrop", "decoder_layerdrop"])
def test_a_model_that_leaves_out_layers_at_random_is_refused(make_whisper, key):
    model = nn.Sequential(make_whisper())
    model[0].config = SimpleNamespace(**{key: 0.1})
    with pytest.raises(ConfigError, match=f"{key}=0.1"):
        sharded(model, torch.device("cpu"), 2)


def test_a_state_that_is_not_divided_stays_as_it_is():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    for same in (whole(state, keep=False), divided(state, optimizer)):
        assert same["param_groups"] == state["param_groups"]
        assert same["state"][0].keys() == state["state"][0].keys()
        assert all(torch.equal(same["state"][0][name], value) for name, value in state["state"][0].items())
