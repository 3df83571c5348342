"""Configurations as plain containers, and what the refused ones are told."""

import pytest
from omegaconf import OmegaConf

from rkd.config import compose
from rkd.errors import ConfigError


def plain(config):
    return OmegaConf.to_container(config)


def refusal(*overrides, stage="distill"):
    with pytest.raises(ConfigError) as refused:
        compose(stage, list(overrides))
    message = str(refused.value)
    assert len(message.splitlines()) <= 2
    return message
