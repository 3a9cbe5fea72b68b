"""A run whose FL server tells a Weights & Biases that answers as slowly as it can: no round waits for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from yard import Site

from fedops_mqtt.protocol import RunOutcome

DRIP_S = 0.5
"""Between two bytes of an answer that never ends: no time-out for reading ever passes."""
KEY = "0" * 40


class Slow:
    """A wandb server that takes every request and is never done with answering."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not await reader.readline():
                return
            self.num_asked += 1
            writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                writer.write(b"o")
                await writer.drain()
                await asyncio.sleep(DRIP_S)
        except OSError:
            return  # whoever asked has gone
        finally:
            writer.close()


@asynccontextmanager
async def slow_wandb() -> AsyncIterator[tuple[Slow, str]]:
    slow = Slow()
    server = await asyncio.start_server(slow.answer, "127.0.0.1", 0)
    try:
        yield slow, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.long
async def test_a_wandb_that_never_answers_delays_no_round_of_the_server(site: Site) -> None:
    async with slow_wandb() as (slow, url):
        told = {"WANDB_BASE_URL": url, "WANDB_DIR": str(site.yard.folder), "FEDOPS_MQTT_WANDB_PROJECT": "digits",
                "FEDOPS_MQTT_WANDB_KEY": KEY}  # fmt: skip
        pairs = ", ".join(f'{name} = "{value}"' for name, value in told.items())
        await site.start_manager(more=f"env = {{{pairs}}}")
        await site.start_clients(2)
        run_id = await site.start_run(num_rounds=3, min_clients=2)
        run = await site.observer.until_ended(run_id)
        assert (run.outcome, run.round) == (RunOutcome.COMPLETED, 3)
        assert slow.num_asked, "wandb was never asked"
        log = str((await site.ask(f"/runs/{run_id}/logs"))["text"])
        assert "wandb failed" not in log, "it has to be slow still when the last round is over"
