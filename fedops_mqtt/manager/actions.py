"""Carries out a plan: an action that is an event of its run is in the journal before it is carried out here."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_never

from fedops_mqtt.bus import BusError, Connection
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import (
    ClientChosen,
    MemberGaveUp,
    RunClosed,
    ServerExited,
    ServerLaunched,
    StopSent,
    TriggerFired,
)
from fedops_mqtt.core.run_plan import Action, EndServer
from fedops_mqtt.line.access import make_token
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.servers import Report, Servers
from fedops_mqtt.protocol import (
    MemberCondition,
    ProtocolError,
    RunOutcome,
    StartTrigger,
    StopTrigger,
    clip,
    topics,
    utc_now,
)
from fedops_mqtt.runtime.background import bare_error

logger = logging.getLogger(__name__)

NUM_WORKERS = 64
"""Publishes under way at a time; the connection allows as many (brokers get no faster beyond about 100)."""


class TriggerPublisher:
    """Publishes triggers over a connection; a client whose start no message can carry fails in its run."""

    def __init__(self, connection: Connection, report: Report) -> None:
        self._connection = connection
        self._report = report
        self._queue: asyncio.Queue[StartTrigger | StopTrigger] = asyncio.Queue()

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Publish while the block runs; triggers still in the queue at its end are dropped."""
        with bare_error():
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(self._work(), name=f"trigger-{number}") for number in range(NUM_WORKERS)]
                try:
                    yield
                finally:
                    for worker in workers:
                        worker.cancel()

    def publish(self, message: StartTrigger | StopTrigger) -> None:
        """Publish a trigger soon."""
        self._queue.put_nowait(message)

    async def _work(self) -> None:
        while True:
            message = await self._queue.get()
            make_topic = topics.client_start if isinstance(message, StartTrigger) else topics.client_stop
            facts = {"run_id": message.run_id, "client_mac": message.client_mac, "attempt": message.attempt}
            try:
                await self._connection.publish(make_topic(message.task_id, message.client_mac), message)
                logger.debug("published a trigger", extra={"message_kind": type(message).__name__, **facts})
            except (BusError, ProtocolError) as error:
                logger.warning("could not publish a trigger", extra={"problem": str(error), **facts})
                if isinstance(message, StartTrigger) and isinstance(error, ProtocolError):  # nor can its repetition
                    reason = clip(f"its start trigger cannot be sent: {error}")
                    self._report(message.run_id, MemberGaveUp(message.client_mac, MemberCondition.FAILED, reason))


class Executor:
    """Carries out the actions of one manager's term."""

    def __init__(self, context: ManagerContext, *, servers: Servers, trigger_publisher: TriggerPublisher) -> None:
        self._context = context
        self._servers = servers
        self._trigger_publisher = trigger_publisher

    def act(self, run: Run, action: Action) -> None:
        """Start an action; its event is in the journal already."""
        match action:
            case ServerLaunched():
                self._launch(run, action)
            case EndServer(reason=reason):
                self._servers.end(run.run_id, run.outcome, reason)
            case TriggerFired():
                self._fire(run, action)
            case StopSent():
                self.stop(run.spec.task_id, run.run_id, action)
            case RunClosed(outcome=outcome, reason=reason):
                level = logging.INFO if outcome is RunOutcome.COMPLETED else logging.WARNING
                facts = {"run_id": run.run_id, "task_id": run.spec.task_id, "outcome": str(outcome), "reason": reason}
                logger.log(level, "run ended", extra=facts)
            case ClientChosen() | MemberGaveUp():
                pass  # complete once they are in the journal
            case _:
                assert_never(action)

    def stop(self, task_id: str, run_id: str, action: StopSent) -> None:
        """Send a client the trigger that ends a run's training."""
        self._trigger_publisher.publish(
            StopTrigger(
                run_id=run_id,
                attempt=action.attempt,
                term=self._context.term,
                task_id=task_id,
                client_mac=action.client_mac,
                reason=clip(action.reason),
                at=utc_now(),
            )
        )

    def _launch(self, run: Run, action: ServerLaunched) -> None:
        task = self._context.open_runs.task(run.run_id)
        if task is None:
            reason = f"task {run.spec.task_id!r} is not in the tasks file, and the journal has no copy of it"
            self._context.event_queue.put(run.run_id, ServerExited(action.launch, reason))
            return
        self._servers.launch(run, action.launch, self._context.open_runs.secret(run.run_id), task)

    def _fire(self, run: Run, action: TriggerFired) -> None:
        server = run.server
        if server is None or run.server_ip is None:
            return
        secret = self._context.open_runs.secret(run.run_id)
        self._trigger_publisher.publish(
            StartTrigger(
                run_id=run.run_id,
                attempt=action.attempt,
                launch=action.launch,
                term=self._context.term,
                task_id=run.spec.task_id,
                client_mac=action.client_mac,
                instance=action.instance,
                server_ip=run.server_ip,
                transport=server.transport,
                token=make_token(secret, run.run_id, action.client_mac) if secret else None,
                gl_model=server.gl_model,
                num_clients=len(run.members),
                app=run.spec.app,
                run_config=dict(run.spec.run_config) or None,
                at=utc_now(),
            )
        )
