"""Every topic of protocol v1, from template to text and back.

Retain, QoS and size limit are facts of the topic, never a caller's choice.
"""

from dataclasses import dataclass
from enum import Enum

from fedops_mqtt.protocol.identity import (
    IdentityError,
    TopicError,
    check_run_id,
    check_task_id,
    level_to_mac,
    mac_to_level,
)

ROOT = "fedops/v1"


class Channel(Enum):
    """One kind of topic; the value is its template."""

    CLIENT_STATUS = f"{ROOT}/{{task_id}}/clients/{{mac}}/status"
    CLIENT_START = f"{ROOT}/{{task_id}}/clients/{{mac}}/start"
    CLIENT_STOP = f"{ROOT}/{{task_id}}/clients/{{mac}}/stop"
    CLIENT_METRICS = f"{ROOT}/{{task_id}}/clients/{{mac}}/metrics"
    SERVER_STATUS = f"{ROOT}/{{task_id}}/server/status"
    SERVER_METRICS = f"{ROOT}/{{task_id}}/server/metrics"
    RUN_STATUS = f"{ROOT}/{{task_id}}/runs/{{run_id}}"
    MANAGER_STATUS = f"{ROOT}/manager/status"

    @property
    def is_retained(self) -> bool:
        """True where the broker keeps the last message for newcomers."""
        return self in _RETAINED

    @property
    def qos(self) -> int:
        """MQTT quality of service: 1 throughout (at least once; readers drop duplicates)."""
        return 1

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload that is sent or read here."""
        return _MAX_ROSTER_BYTES if self in _ROSTERS else _MAX_PAYLOAD_BYTES


_MAX_PAYLOAD_BYTES = 64 * 1024
"""For what concerns one client: a reason of 20 lines in the worst escaping fits twice, a model does not."""

_MAX_ROSTER_BYTES = 4 * 1024 * 1024
"""For what lists a run's clients: 20,000 of them with a short reason each."""

_ROSTERS = frozenset({Channel.SERVER_STATUS, Channel.RUN_STATUS})
_RETAINED = frozenset({Channel.CLIENT_STATUS, Channel.SERVER_STATUS, Channel.RUN_STATUS, Channel.MANAGER_STATUS})


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic: its channel and what fills the template. Make one with the functions below."""

    channel: Channel
    task_id: str | None = None
    client_mac: str | None = None
    run_id: str | None = None

    def __str__(self) -> str:
        level = mac_to_level(self.client_mac) if self.client_mac else None
        return self.channel.value.format(task_id=self.task_id, mac=level, run_id=self.run_id)


def client_status(task_id: str, client_mac: str) -> Topic:
    """Return the topic of a client's status (retained)."""
    return Topic(Channel.CLIENT_STATUS, check_task_id(task_id), client_mac)


def client_start(task_id: str, client_mac: str) -> Topic:
    """Return the topic that carries start triggers to one client."""
    return Topic(Channel.CLIENT_START, check_task_id(task_id), client_mac)


def client_stop(task_id: str, client_mac: str) -> Topic:
    """Return the topic that carries stop triggers to one client."""
    return Topic(Channel.CLIENT_STOP, check_task_id(task_id), client_mac)


def client_metrics(task_id: str, client_mac: str) -> Topic:
    """Return the topic of a client's metrics."""
    return Topic(Channel.CLIENT_METRICS, check_task_id(task_id), client_mac)


def server_status(task_id: str) -> Topic:
    """Return the topic of a task's FL server (retained)."""
    return Topic(Channel.SERVER_STATUS, check_task_id(task_id))


def server_metrics(task_id: str) -> Topic:
    """Return the topic of an FL server's metrics."""
    return Topic(Channel.SERVER_METRICS, check_task_id(task_id))


def run_status(task_id: str, run_id: str) -> Topic:
    """Return the topic of a run (retained until the run is archived)."""
    return Topic(Channel.RUN_STATUS, check_task_id(task_id), run_id=check_run_id(run_id))


def manager_status() -> Topic:
    """Return the topic of the manager (retained)."""
    return Topic(Channel.MANAGER_STATUS)


def filter_for(channel: Channel, task_id: str | None = None, client_mac: str | None = None) -> str:
    """Return the MQTT topic filter for a channel; what is not named is matched by `+` (MQTT 5, 4.7.1.3)."""
    return channel.value.format(
        task_id=check_task_id(task_id) if task_id else "+",
        mac=mac_to_level(client_mac) if client_mac else "+",
        run_id="+",
    )


def parse_topic(text: str) -> Topic:
    """Return the topic that a topic string names.

    Raises:
        TopicError: it is no topic of protocol v1, or a level in it has the wrong form.
    """
    try:
        return _parse_levels(text.split("/"), text)
    except IdentityError as error:
        raise TopicError(text, str(error)) from error


def _parse_levels(levels: list[str], text: str) -> Topic:
    match levels:
        case ["fedops", "v1", "manager", "status"]:
            return manager_status()
        case ["fedops", "v1", task_id, "clients", level, leaf] if leaf in _CLIENT_LEAVES:
            return Topic(_CLIENT_LEAVES[leaf], check_task_id(task_id), level_to_mac(level))
        case ["fedops", "v1", task_id, "server", leaf] if leaf in _SERVER_LEAVES:
            return Topic(_SERVER_LEAVES[leaf], check_task_id(task_id))
        case ["fedops", "v1", task_id, "runs", run_id]:
            return run_status(task_id, run_id)
    raise TopicError(text, f"not a topic of {ROOT}")


_CLIENT_LEAVES = {
    "status": Channel.CLIENT_STATUS,
    "start": Channel.CLIENT_START,
    "stop": Channel.CLIENT_STOP,
    "metrics": Channel.CLIENT_METRICS,
}
_SERVER_LEAVES = {"status": Channel.SERVER_STATUS, "metrics": Channel.SERVER_METRICS}
