"""The retained status of each open run: published whenever it changes, a few times a second at most, and repeated.

Repeated at each heartbeat, changed or not: a broker that forgot it, or a cluster's node that shows an old one to
newcomers, is mended like with every other retained status.
"""

import asyncio
import logging
import time
from contextlib import suppress
from datetime import UTC, datetime

from fedops_mqtt.bus import BusError, Connection, StatusOwner
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import Member
from fedops_mqtt.manager.open_runs import OpenRuns
from fedops_mqtt.manager.run_record import count_members
from fedops_mqtt.protocol import ProtocolError, RunMember, RunStatus, clip, roster, topics, utc_now

logger = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.2
"""Between two words on the same runs; people read them."""

PAUSE_RATIO = 9
"""Times the last words' own cost before the next: a run of thousands, whose roster is some hundred kB and changes all
the time, takes a tenth of the manager at most."""

MAX_INTERVAL_S = 2.0

RETRY_S = 2.0

MAX_MEMBER_REASON = 200
"""Characters; a roster of thousands of failures has to fit a message. The client's own status has the whole reason."""


class RunStatusPublisher:
    """Publishes the runs of a ledger under the manager's own epoch."""

    def __init__(self, open_runs: OpenRuns, *, term: int) -> None:
        self._ledger = open_runs
        self._term = term
        self._changed: dict[str, None] = {}
        self._news = asyncio.Event()

    def changed(self, run_id: str) -> None:
        """Say a run's status soon."""
        self._changed[run_id] = None
        self._news.set()

    def publish_all(self) -> None:
        """Say every open run's status soon: the connection is new, or somebody cleared one."""
        for run in self._ledger:
            self.changed(run.run_id)

    async def run(self, connection: Connection, owner: StatusOwner) -> None:
        """Publish, for ever."""
        repeat_at = time.monotonic() + owner.heartbeat_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(repeat_at - time.monotonic()):
                    await self._news.wait()
            if time.monotonic() >= repeat_at:
                repeat_at = time.monotonic() + owner.heartbeat_s
                self.publish_all()
            self._news.clear()
            began = time.monotonic()
            is_said = await self._say(connection, owner)
            cost_s = time.monotonic() - began
            pause_s = min(max(MIN_INTERVAL_S, PAUSE_RATIO * cost_s), MAX_INTERVAL_S)
            await asyncio.sleep(pause_s if is_said else RETRY_S)

    async def _say(self, connection: Connection, owner: StatusOwner) -> bool:
        """Return False when something is left unsaid."""
        changed, self._changed = self._changed, {}
        for run_id in changed:
            run = self._ledger.get(run_id)
            if run is None or not connection.is_connected:
                continue  # a new connection says everything again
            try:
                # On a thread: of a run of 20,000 clients it is some 0.3 s.
                status = await asyncio.to_thread(self.describe, run, owner, owner.next_stamp())
                await connection.publish(topics.run_status(status.task_id, run_id), status)
            except ProtocolError as error:  # said again when it has changed, and fits perhaps
                logger.error("a run's status fits no message", extra={"run_id": run_id, "problem": str(error)})
            except BusError as error:
                logger.warning("could not publish a run's status", extra={"run_id": run_id, "problem": str(error)})
                self.changed(run_id)
        return not self._changed

    def describe(self, run: Run, owner: StatusOwner, stamp: Stamp) -> RunStatus:
        """Return a run's status."""
        word = run.server
        return RunStatus(
            instance=owner.instance,
            epoch=stamp.epoch,
            seq=stamp.seq,
            at=utc_now(),
            heartbeat_s=owner.heartbeat_s,
            run_id=run.run_id,
            task_id=run.spec.task_id,
            status=run.status,
            outcome=run.outcome,
            reason=clip(run.reason),
            term=self._term,
            launch=run.launch,
            server_ip=run.server_ip,
            round=word.round if word else 0,
            num_rounds=run.num_rounds,
            min_clients=run.spec.min_clients,
            gl_model=word.gl_model if word else 0,
            metrics=word.metrics if word else {},
            model_path=word.model_path if word else None,
            clients=roster.fit({mac: _member(member) for mac, member in roster.choose(run.members).items()}),
            clients_by_status=count_members(run),
            created_at=_utc(run.created_at),
            ended_at=_utc(run.ended_at) if run.ended_at is not None else None,
        )


def _member(member: Member) -> RunMember:
    return RunMember(status=member.status, attempt=member.attempt, reason=clip(member.reason, MAX_MEMBER_REASON))


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
