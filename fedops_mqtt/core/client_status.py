"""What a client says of itself: its whole condition as a status, and its last will."""

from collections.abc import Mapping
from datetime import datetime

from fedops_mqtt.core.client import Client, Identity
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.protocol import ClientCondition, ClientStatus

LOST = "lost"


def snapshot(
    client: Client, stamp: Stamp, *, at: datetime, heartbeat_s: float, agent: Mapping[str, str]
) -> ClientStatus:
    """Return the status that says everything about a client."""
    return ClientStatus(
        status=client.condition,
        reason=client.reason,
        task_id=client.identity.task_id,
        client_mac=client.identity.client_mac,
        client_name=client.identity.client_name,
        instance=client.identity.instance,
        epoch=stamp.epoch,
        seq=stamp.seq,
        at=at,
        heartbeat_s=heartbeat_s,
        run=client.run,
        last_run=client.facts.last_run,
        last_trigger=client.facts.last_trigger,
        server_ip=client.server_ip,
        gl_model=client.facts.gl_model,
        agent=dict(agent),
    )


def last_will(identity: Identity, stamp: Stamp, *, at: datetime, heartbeat_s: float) -> ClientStatus:
    """Return what the broker says for a client that dies: only who, and that it is lost."""
    return ClientStatus(
        status=ClientCondition.CLIENT_OUT,
        reason=LOST,
        task_id=identity.task_id,
        client_mac=identity.client_mac,
        client_name=identity.client_name,
        instance=identity.instance,
        epoch=stamp.epoch,
        seq=stamp.seq,
        at=at,
        heartbeat_s=heartbeat_s,
    )
