"""Several sources as one."""

import pytest
from recordings import Listed, one_each

from rkd.data.sources import Rejected
from rkd.data.sources.mixture import Mixture
from rkd.errors import ConfigError


def test_mixture_trains_on_all_and_tests_on_some():
    mixture = Mixture({"real": Listed(*one_each()), "made": Listed(*one_each(), Rejected("x", "y"))}, ["real"])
    found = list(mixture.utterances())
    assert [(one.id, getattr(one, "source", None)) for one in found] == [
        ("real/base-train", "real"),
        ("real/base-validation", "real"),
        ("real/base-test", "real"),
        ("made/base-train", "made"),
        ("made/x", None),
    ]
    with pytest.raises(ConfigError, match="real"):
        Mixture({"real": Listed()}, ["unreal"])
