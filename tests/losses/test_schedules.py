"""Values that change over the training."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rkd.errors import ConfigError
from rkd.losses import Schedule

SHARES, VALUES = st.floats(0, 1), st.floats(-100, 100)


@given(VALUES, SHARES)
def test_a_number_stays_what_it_is(value, share):
    assert Schedule.of(value).at(share) == value


@given(VALUES, VALUES, SHARES, st.sampled_from(["linear", "cosine"]))
def test_a_schedule_goes_from_one_value_to_the_other(start, end, share, shape):
    schedule = Schedule.of({"from": start, "to": end, "shape": shape})
    assert schedule.at(0.0) == start and schedule.at(1.0) == pytest.approx(end, abs=1e-9)
    low, high = sorted((start, end))
    assert low - 1e-9 <= schedule.at(share) <= high + 1e-9
    assert schedule.at(share) + schedule.at(1 - share) == pytest.approx(start + end, abs=1e-9)
    assert schedule.times(0.25).at(share) == pytest.approx(0.25 * schedule.at(share), abs=1e-9)


def test_the_shapes():
    linear, cosine = (Schedule.of({"from": 4, "to": 1, "shape": s}) for s in ("linear", "cosine"))
    assert linear.at(0.25) == 3.25 and Schedule.of({"from": 4, "to": 1}) == linear
    assert cosine.at(0.25) == pytest.approx(4 - 3 * (1 - math.cos(math.pi / 4)) / 2)
    with pytest.raises(ConfigError, match="linear or cosine"):
        Schedule.of({"from": 4, "to": 1, "shape": "steps"})
