"""Carries out a plan: each action that is an event of its run is in the journal before it is done here."""

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
from fedops_mqtt.manager.servers import Servers
from fedops_mqtt.protocol import ProtocolError, RunOutcome, StartTrigger, StopTrigger, clip, topics, utc_now
from fedops_mqtt.runtime.background import bare_error

logger = logging.getLogger(__name__)

NUM_WORKERS = 64
"""Publishes under way at a time; the connection allows as many (brokers get no faster beyond about 100)."""


class TriggerPublisher:
    """Says triggers over a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unsaid: asyncio.Queue[StartTrigger | StopTrigger] = asyncio.Queue()

    @asynccontextmanager
    async def speaking(self) -> AsyncIterator[None]:
        """Publish what is said while the block runs; what is unsaid at its end stays unsaid."""
        with bare_error():
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(self._work(), name=f"speak-{number}") for number in range(NUM_WORKERS)]
                try:
                    yield
                finally:
                    for worker in workers:
                        worker.cancel()

    def say(self, message: StartTrigger | StopTrigger) -> None:
        """Publish a trigger soon."""
        self._unsaid.put_nowait(message)

    async def _work(self) -> None:
        while True:
            await self._publish(await self._unsaid.get())

    async def _publish(self, message: StartTrigger | StopTrigger) -> None:
        make_topic = topics.client_start if isinstance(message, StartTrigger) else topics.client_stop
        facts = {"run_id": message.run_id, "client_mac": message.client_mac, "attempt": message.attempt}
        try:
            await self._connection.publish(make_topic(message.task_id, message.client_mac), message)
            logger.debug("published a trigger", extra={"message_kind": type(message).__name__, **facts})
        except (BusError, ProtocolError) as error:
            logger.warning("could not publish a trigger", extra={"problem": str(error), **facts})


class Executor:
    """Does what was planned, for one manager's term."""

    def __init__(self, desk: ManagerContext, *, servers: Servers, speaker: TriggerPublisher) -> None:
        self._desk = desk
        self._servers = servers
        self._speaker = speaker

    def act(self, run: Run, action: Action) -> None:
        """Carry out an action whose event is in the journal."""
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
                pass  # the journal is where these happen
            case _:
                assert_never(action)

    def stop(self, task_id: str, run_id: str, action: StopSent) -> None:
        """Tell a client to end a run's training."""
        self._speaker.say(
            StopTrigger(
                run_id=run_id,
                attempt=action.attempt,
                term=self._desk.term,
                task_id=task_id,
                client_mac=action.client_mac,
                reason=clip(action.reason),
                at=utc_now(),
            )
        )

    def _launch(self, run: Run, action: ServerLaunched) -> None:
        task = self._desk.open_runs.task(run.run_id)
        if task is None:
            why = f"task {run.spec.task_id!r} is not in the tasks file, and this run's beginning did not keep it"
            self._desk.inbox.put(run.run_id, ServerExited(action.launch, why))
            return
        self._servers.launch(run, action.launch, self._desk.open_runs.secret(run.run_id), task)

    def _fire(self, run: Run, action: TriggerFired) -> None:
        word = run.server
        if word is None or run.server_ip is None:
            return
        secret = self._desk.open_runs.secret(run.run_id)
        self._speaker.say(
            StartTrigger(
                run_id=run.run_id,
                attempt=action.attempt,
                launch=action.launch,
                term=self._desk.term,
                task_id=run.spec.task_id,
                client_mac=action.client_mac,
                instance=action.instance,
                server_ip=run.server_ip,
                transport=word.transport,
                token=make_token(secret, run.run_id, action.client_mac) if secret else None,
                gl_model=word.gl_model,
                num_clients=len(run.members),
                app=run.spec.app,
                run_config=dict(run.spec.run_config) or None,
                at=utc_now(),
            )
        )
