"""The door of the bus: what no clock shows is refused, whoever says it."""

import time

import orjson
import pytest

from fedops_mqtt.bus.events import Intake, Malformed, Received
from fedops_mqtt.core.ownership import latest_epoch
from fedops_mqtt.protocol import ClientCondition, ClientStatus, encode, topics, utc_now

MAC = "02:00:00:00:00:01"
NOW_MS = time.time_ns() // 1_000_000
SAID = ClientStatus(
    status=ClientCondition.ONLINE, task_id="digits", client_mac=MAC, instance="a", epoch=1, seq=1, at=utc_now()
)


def read(epoch: int) -> object:
    payload = orjson.dumps(orjson.loads(encode(SAID)) | {"epoch": epoch})
    return Intake().read(str(topics.client_status("digits", MAC)), payload, is_retained=False)


# With names: each worker of pytest has another clock, and all must collect the same tests.
@pytest.mark.parametrize(
    "epoch",
    [2**63 - 1, 2**62, 2**62 - 1, 2**53, 2**53 - 1, latest_epoch(NOW_MS) + 600_000, -1],
    ids=["2**63-1", "2**62", "2**62-1", "2**53", "2**53-1", "later", "negative"],
)
def test_an_epoch_that_no_clock_shows_is_malformed(epoch: int) -> None:
    event = read(epoch)
    assert isinstance(event, Malformed)
    assert "epoch" in str(event.error)


@pytest.mark.parametrize("epoch", [0, 1, NOW_MS, 2**32 * 1000], ids=["0", "1", "now", "2106"])
def test_an_epoch_of_any_clock_that_runs_is_accepted(epoch: int) -> None:
    assert isinstance(read(epoch), Received)
