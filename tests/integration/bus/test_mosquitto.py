"""mosquitto as a managed process: ready when entered, gone when left, and clear about why it did not start."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from bus_helpers import MAC, PATIENCE_S, next_event, reader_of, retained_status, status

from fedops_mqtt.bus import Connected, Disconnected, Mosquitto, MosquittoError
from fedops_mqtt.protocol import topics


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


async def test_it_answers_when_entered_and_has_ended_when_left() -> None:
    async with Mosquitto() as broker:
        pid = broker.pid
        assert is_alive(pid)
        async with reader_of(broker) as reader:
            assert reader.is_connected
    assert not is_alive(pid)


async def test_two_brokers_run_side_by_side() -> None:
    async with Mosquitto() as one, Mosquitto() as two:
        assert one.port != two.port


async def test_a_taken_port_is_reported_with_mosquittos_own_message(broker: Mosquitto) -> None:
    with pytest.raises(MosquittoError, match="Address already in use"):
        await Mosquitto(port=broker.port, start_timeout_s=2.0).__aenter__()


async def test_a_wrong_configuration_is_reported_with_mosquittos_own_message(tmp_path: Path) -> None:
    config = tmp_path / "broken.conf"
    config.write_text("listener 1883 127.0.0.1\nno_such_directive true\n")
    with pytest.raises(MosquittoError, match="no_such_directive"):
        await Mosquitto(config=config).__aenter__()


async def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(MosquittoError, match=r"nowhere\.conf"):
        await Mosquitto(config=tmp_path / "nowhere.conf").__aenter__()


async def test_a_missing_mosquitto_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("fedops_mqtt.bus.mosquitto._SEARCHED_TOO", ())
    with pytest.raises(MosquittoError, match="apt-get install mosquitto"):
        await Mosquitto().__aenter__()


async def test_retained_statuses_survive_an_orderly_restart(broker: Mosquitto, task_id: str) -> None:
    topic = topics.client_status(task_id, MAC)
    async with reader_of(broker) as writer:
        await writer.publish(topic, status(task_id))
    await broker.restart()
    assert (await retained_status(broker, topic)).task_id == task_id


async def test_a_killed_broker_comes_back_on_its_port(broker: Mosquitto) -> None:
    async with reader_of(broker) as reader:
        port, pid = broker.port, broker.pid
        await broker.kill()
        assert not is_alive(pid)
        await next_event(reader, Disconnected)
        await broker.start()
        await next_event(reader, Connected)
        assert broker.port == port


async def test_a_paused_broker_can_be_left(task_id: str) -> None:
    async with Mosquitto() as broker:
        pid = broker.pid
        broker.pause()
    assert not is_alive(pid)


async def test_more_than_a_thousand_retained_statuses_reach_a_new_subscriber(broker: Mosquitto, task_id: str) -> None:
    """The default queue of 1000 drops the rest silently."""
    macs = [f"02:00:00:00:{n // 256:02x}:{n % 256:02x}" for n in range(3000)]
    async with reader_of(broker) as writer, asyncio.TaskGroup() as group:
        for mac in macs:
            group.create_task(writer.publish(topics.client_status(task_id, mac), status(task_id, mac=mac)))
    async with reader_of(broker, "fedops/v1/+/clients/+/status") as reader, asyncio.timeout(PATIENCE_S):
        num_read = 0
        while num_read < len(macs):
            num_read += len(await reader.drain())


PARENT = """
import asyncio, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
from fedops_mqtt.bus import Mosquitto

async def main():
    async with Mosquitto() as broker:
        print(broker.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_it_ends_with_its_parent_however_that_ends(number: signal.Signals) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), PATIENCE_S))
    broker = os.pidfd_open(pid)
    try:
        parent.send_signal(number)
        await parent.wait()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(broker, ended.set)
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
        asyncio.get_running_loop().remove_reader(broker)
    finally:
        os.close(broker)
