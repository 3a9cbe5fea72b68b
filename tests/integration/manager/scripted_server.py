"""A small FL server program for the manager's tests: it publishes on the bus, and does what files command.

It trains nothing: its line is a socket that answers. `{folder}/{command}` says what to do: `finish`, `fail`, `mute`;
with `unpublished` its final status is kept and not published, with `linger` its process stays after it left the bus.
`stuck`, once, is a server that never gets ready and ignores SIGTERM.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedops_mqtt.aggregation.pipe_publisher import keep_final_status
from fedops_mqtt.bus import BusOptions, Connection, MemoryEpochs, NotConnectedError, StatusOwner, new_instance
from fedops_mqtt.core.fencing import LAST_SEQ, Stamp
from fedops_mqtt.protocol import (
    Channel,
    ClientStatus,
    MemberCondition,
    ServerClient,
    ServerCondition,
    ServerMetrics,
    ServerStatus,
    filter_for,
    topics,
    utc_now,
)
from fedops_mqtt.runtime.settings import ServerSettings


@dataclass
class ServerState:
    status: ServerCondition = ServerCondition.STARTING
    reason: str | None = None
    server_ip: str | None = None


async def main(folder: Path) -> int:
    settings = ServerSettings()
    assert settings.task_id is not None
    if (folder / "crash").exists():
        print("Traceback: it crashed on purpose", flush=True)
        return 3
    if (folder / "stuck").exists():
        (folder / "stuck").unlink()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()
    run_id = settings.run_id or f"by-hand-{os.getpid()}"
    state, clients, instance = ServerState(), dict[str, ServerClient](), new_instance()

    def status_at(stamp: Stamp) -> ServerStatus:
        return ServerStatus(
            instance=instance, epoch=stamp.epoch, seq=stamp.seq, at=utc_now(), heartbeat_s=settings.heartbeat_s,
            status=state.status, reason=state.reason, task_id=settings.task_id, run_id=run_id,
            launch=settings.launch, server_ip=state.server_ip, round=1, num_rounds=settings.num_rounds or 1,
            gl_model=4, metrics={"accuracy": 0.5}, clients=dict(clients),
        )  # fmt: skip

    def out_status_at(stamp: Stamp) -> ServerStatus:
        out = {"status": ServerCondition.SERVER_OUT, "reason": "lost", "server_ip": None}
        return status_at(stamp).model_copy(update=out)

    owner = StatusOwner(
        topic=topics.server_status(settings.task_id), instance=instance,
        make_snapshot=status_at, make_will=out_status_at,
        make_goodbye=None, epochs=MemoryEpochs(), heartbeat_s=settings.heartbeat_s,
    )  # fmt: skip
    hears = [filter_for(Channel.CLIENT_STATUS, settings.task_id)]
    options = BusOptions.from_settings(settings)
    line = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = line.sockets[0].getsockname()
    async with line, owner.on_bus(settings.broker, client_id=None, subscriptions=hears, options=options) as bus:
        state.status, state.server_ip = ServerCondition.READY, f"{host}:{port}"
        owner.update()
        while True:
            await receive(bus, run_id, clients, state, owner)
            if (folder / "mute").exists():
                line.close()
                await asyncio.Event().wait()
            for name, status in (("finish", ServerCondition.FINISHED), ("fail", ServerCondition.FAILED)):
                if (folder / name).exists():
                    metrics = ServerMetrics(
                        task_id=settings.task_id, run_id=run_id, launch=settings.launch, round=1,
                        metrics={"accuracy": 0.5}, at=utc_now(),
                    )  # fmt: skip
                    with suppress(NotConnectedError):
                        await bus.publish(topics.server_metrics(settings.task_id), metrics)
                    state.status, state.reason = status, (folder / name).read_text() or None
                    status = status_at(Stamp(owner.epoch, LAST_SEQ - 1))
                    keep_final_status(settings.final_status_file, status, store=settings.store)
                    if (folder / "unpublished").exists():
                        return 0
                    owner.update()
                    await owner.flush(10)
                    return 0


async def receive(
    bus: Connection, run_id: str, clients: dict[str, ServerClient], state: ServerState, owner: StatusOwner
) -> None:
    """Whoever says that it trains our run has joined."""
    for event in await bus.drain(0.02):
        message = getattr(event, "message", None)
        if isinstance(message, ClientStatus) and message.run and message.run.run_id == run_id:
            reported = ServerClient(status=MemberCondition.TRAINING, attempt=message.run.attempt, round=1)
            if clients.get(message.client_mac) != reported:
                clients[message.client_mac] = reported
                state.status = ServerCondition.RUNNING
                owner.update()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await reader.readline()
        writer.write(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    result = asyncio.run(main(folder))
    if (folder / "linger").exists():
        signal.pause()
    sys.exit(result)
