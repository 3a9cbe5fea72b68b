"""What the FL server would say of itself right now, as one immutable value; every status on the bus is made from it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedops_mqtt.line.members import LineMember
from fedops_mqtt.protocol import (
    MAX_TEXT_CHARS,
    MemberCondition,
    MetricsCutter,
    Outcome,
    ServerClient,
    ServerCondition,
    ServerStatus,
    Transport,
    clip,
    count_of,
    roster,
    utc_now,
)

_log = logging.getLogger(__name__)

_MAX_CLIENT_REASON = 200
"""Of a client's: a run may have thousands, and each client's own status has the whole of it."""

_CONDITIONS = {
    Outcome.FINISHED: MemberCondition.FINISHED,
    Outcome.FAILED: MemberCondition.FAILED,
    Outcome.STOPPED: MemberCondition.STOPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSnapshot:
    """The FL server's whole condition, without the stamp that its connection gives it."""

    task_id: str
    run_id: str
    launch: int
    instance: str
    heartbeat_s: float
    agent: Mapping[str, str]
    status: ServerCondition = ServerCondition.STARTING
    reason: str | None = None
    server_ip: str | None = None
    round: int = 0
    num_rounds: int = 0
    gl_model: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    model_path: str | None = None
    clients: Mapping[str, ServerClient] = field(default_factory=dict)

    def to_status(self, epoch: int, seq: int) -> ServerStatus:
        """Return the status as it goes on the bus; what strategies and programs put here is cut to what it takes."""
        return ServerStatus(
            **self._who(epoch, seq),
            status=self.status,
            reason=clip(self.reason),
            server_ip=self.server_ip,
            transport=Transport.LINE,
            round=count_of(self.round),
            num_rounds=count_of(self.num_rounds),
            gl_model=count_of(self.gl_model),
            metrics=MetricsCutter(_log.debug).cut_numbers(self.metrics),
            model_path=clip(self.model_path, MAX_TEXT_CHARS),
            clients=roster.fit(self.clients),
            agent=dict(self.agent),
        )

    def to_will(self, epoch: int, seq: int) -> ServerStatus:
        """Return the last will: only who, and that it is out."""
        return ServerStatus(**self._who(epoch, seq), status=ServerCondition.SERVER_OUT, reason="lost")

    def _who(self, epoch: int, seq: int) -> dict[str, object]:
        return {
            "instance": self.instance,
            "epoch": epoch,
            "seq": seq,
            "at": utc_now(),
            "heartbeat_s": self.heartbeat_s,
            "task_id": self.task_id,
            "run_id": self.run_id,
            "launch": self.launch,
        }


def client_of(member: LineMember) -> ServerClient:
    """Return what the server says of one member of its line."""
    if member.outcome is not None:
        status = _CONDITIONS[member.outcome]
    else:
        status = MemberCondition.TRAINING if member.is_present else MemberCondition.LOST
    return ServerClient(
        status=status,
        attempt=member.attempt,
        phase=member.phase if member.outcome is None else None,
        round=member.round or 0,
        reason=clip(member.reason, _MAX_CLIENT_REASON),
    )
