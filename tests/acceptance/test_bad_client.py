"""One bad client costs the others nothing: while it floods, lies and babbles, a run of the others goes as if alone."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import count
from urllib.parse import urlsplit

import aiomqtt
import httpx
import pytest
from yard import Site

from fedops_mqtt.protocol import (
    ClientCondition,
    ClientStatus,
    MemberCondition,
    RunOutcome,
    encode,
    mac_to_level,
    topics,
    utc_now,
)
from fedops_mqtt.runtime.background import alongside, raise_if_cancelled

BAD = "02:00:00:00:0b:ad"
FLOOD_PER_TURN = 200
TOO_LARGE = b'{"reason": "' + b"x" * 200_000 + b'"}'


def own_status(task_id: str, seq: int, *, claims_to_be: str = BAD) -> bytes:
    return encode(
        ClientStatus(
            status=ClientCondition.ONLINE,
            task_id=task_id,
            client_mac=claims_to_be,
            client_name="bad",
            instance="000000000001-bad0",
            epoch=1,
            seq=seq,
            at=utc_now(),
        )
    )


async def misbehave(url: str, task_id: str, others: list[str]) -> None:
    """Everything that a device may do at a broker where it can write, for ever and as fast as it goes."""
    chance = random.Random(1)
    mine = str(topics.client_status(task_id, BAD))
    seqs = count(1)
    async with aiomqtt.Client(urlsplit(url).hostname or "", urlsplit(url).port or 0) as bus:
        while True:
            raise_if_cancelled()  # a turn waits but once, and there aiomqtt loses one cancellation in some
            for _ in range(FLOOD_PER_TURN):
                await bus.publish(mine, own_status(task_id, next(seqs)), qos=0, retain=True)
            for other in others:
                level = f"fedops/v1/{task_id}/clients/{mac_to_level(other)}"
                for leaf in ("status", "start", "stop", "metrics"):
                    await bus.publish(f"{level}/{leaf}", chance.randbytes(500), qos=0)
                await bus.publish(f"{level}/status", TOO_LARGE, qos=0)
                await bus.publish(f"{level}/status", own_status(task_id, next(seqs)), qos=0)  # about itself
                await bus.publish(f"{level}/status", own_status(task_id, 1, claims_to_be=other), qos=0, retain=True)
            for place in ("server/status", "server/metrics", "runs/no-such", "clients/nobody/status"):
                await bus.publish(f"fedops/v1/{task_id}/{place}", chance.randbytes(500), qos=0)
            await bus.publish(mine, chance.randbytes(50), qos=1)  # waits: the broker is the pace


async def join_for_others(line: str, others: list[str]) -> AsyncIterator[int]:
    """Ask for a place on the line in the name of each other, with a token of one's own making; for ever."""
    async with httpx.AsyncClient(base_url=f"http://{line}", trust_env=False, timeout=300) as http:
        while True:
            for other in others:
                join = {"client_mac": other, "instance": "bad", "attempt": 99}
                answer = await http.post("/line/v1/join", json=join, headers={"Authorization": "Bearer mine"})
                yield answer.status_code


@pytest.mark.long
async def test_one_bad_client_does_not_affect_the_others(site: Site) -> None:
    clients = await site.start_clients(3)
    others = list(clients)
    manager = await site.start_manager(more="min_clients = 3\nnum_rounds = 5", server_args=["--epochs", "40"])
    async with alongside(misbehave(site.broker, site.task_id, others), name="bad client"):
        await site.observer.until_client(BAD, ClientCondition.ONLINE)
        run_id = await site.start_run(clients=list(others))
        ready = await site.observer.until_run(run_id, lambda run: run.server_ip is not None)
        async with asyncio.timeout(300), aclosing(join_for_others(str(ready.server_ip), others)) as answers:
            assert [await anext(answers) for _ in range(20)] == [401] * 20
        run = await site.observer.until_ended(run_id)
    assert (run.outcome, run.reason, run.launch, run.round) == (RunOutcome.COMPLETED, "all rounds done", 1, 5)
    results = {mac: (member.status, member.attempt) for mac, member in run.clients.items()}
    assert results == dict.fromkeys(others, (MemberCondition.FINISHED, 1))
    events = (await site.ask(f"/runs/{run_id}/events"))["items"]
    assert isinstance(events, list)
    assert "lost" not in [event["detail"].get("status") for event in events]
    for process in (manager, *clients.values()):
        assert process.process.returncode is None, process.stderr
        assert "Traceback" not in process.stderr, process.stderr
