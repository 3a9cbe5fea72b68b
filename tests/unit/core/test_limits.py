"""The limits of a run are finite, and never more than an FL server takes."""

import pytest
from pydantic import ValidationError

from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.protocol.values import MAX_LIMIT_S
from fedops_mqtt.runtime.settings import ServerSettings


@pytest.mark.parametrize("limit_s", [1e9, 1e300])
def test_a_limit_that_people_write_for_none_is_one_that_a_server_takes(limit_s: float) -> None:
    limits = RunLimits(run_s=limit_s, round_s=limit_s, join_s=limit_s)
    assert limits.run_s == limits.round_s == limits.join_s == MAX_LIMIT_S
    ServerSettings(run_limit_s=limits.run_s, round_limit_s=limits.round_s, join_limit_s=limits.join_s)


@pytest.mark.parametrize("limit_s", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_no_time_is_refused(limit_s: float) -> None:
    with pytest.raises(ValidationError):
        RunLimits(run_s=limit_s)
