"""The rows of the fleet's table: made when somebody looks, the same object while nothing has changed."""

from typing import Any

from fedops_mqtt.bus import Connected, Received
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.dashboard.fleet_rows import LOAD_TOPICS, FleetRows
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.events import ChangeTopic, FleetChange, Subscription
from fedops_mqtt.manager.open_runs import OpenRuns
from fedops_mqtt.protocol import ClientCondition, ClientStatus, CurrentRun, Phase, topics, utc_now

TASK = "digits"
A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


class Scene:
    """A bus reader and the rows that follow it."""

    def __init__(self) -> None:
        self.bus_reader = BusReader(Fleet(default_heartbeat_s=60), OpenRuns([]))
        self.bus_reader.apply([Connected("5")], 0.0)
        self.news = Subscription(frozenset(LOAD_TOPICS))
        self.rows = FleetRows(self.bus_reader.fleet, self.news)

    def receives(self, mac: str, seq: int, **changes: Any) -> None:
        status = ClientStatus(
            instance="i", epoch=1, seq=seq, at=utc_now(), heartbeat_s=60, task_id=TASK, client_mac=mac,
            status=changes.pop("status", ClientCondition.ONLINE), **changes,
        )  # fmt: skip
        self.bus_reader.apply([Received(topics.client_status(TASK, mac), status, is_retained=False)], float(seq))


def test_only_who_has_changed_gets_another_row() -> None:
    scene = Scene()
    scene.receives(A, 1)
    scene.receives(B, 1)
    first = dict(scene.rows.current())
    assert set(first) == {(TASK, A), (TASK, B)}
    scene.receives(B, 2, status=ClientCondition.CLIENT_OUT, reason="lost")
    then = scene.rows.current()
    assert then[TASK, A] is first[TASK, A]
    assert (then[TASK, B]["status"], then[TASK, B]["reason"]) == ("Offline", "lost")


def test_a_reported_load_is_shown_in_the_row_of_a_training_client() -> None:
    scene = Scene()
    run = CurrentRun(run_id="r", attempt=1, launch=1, phase=Phase.TRAINING, round=1)
    scene.receives(A, 1, status=ClientCondition.TRAIN_STARTED, run=run)
    told = {"kind": "system", "values": {"cpu": 50.0, "memory": 10.0}}
    scene.news.put(FleetChange(kind=ChangeTopic.METRICS, task_id=TASK, client_mac=A, make_record=lambda: told))
    assert scene.rows.current()[TASK, A]["load"] == "CPU 50 %, mem 10 %"


def test_a_forgotten_client_has_no_row() -> None:
    scene = Scene()
    scene.receives(A, 1)
    assert scene.rows.current()
    del scene.bus_reader.fleet.clients[TASK, A]
    assert scene.rows.current() == {}
