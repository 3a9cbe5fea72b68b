"""FLClientTask in a user's own program, blocking and beside his coroutines."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from client_testbed import HERE, PATIENCE_S, SECRET, Operator, ServeFl

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.protocol import ClientCondition


@pytest.mark.parametrize(
    ("mode", "number"), [("start", signal.SIGTERM), pytest.param("beside", signal.SIGINT, marks=pytest.mark.long)]
)
async def test_a_users_own_program_trains_and_ends_on_request(
    operator: Operator,
    serve_fl: ServeFl,
    broker: Mosquitto,
    tmp_path: Path,
    mode: str,
    number: signal.Signals,
) -> None:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "client_main.py"), mode, operator.task_id, operator.mac, broker.url),
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    try:
        await operator.until_condition(ClientCondition.ONLINE)
        await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "2"))
        finished = await operator.until(lambda status: status.last_run is not None)
        assert finished.status is ClientCondition.TRAIN_FINISHED, finished.reason
        program.send_signal(number)
        await operator.until_condition(ClientCondition.CLIENT_OUT, reason="shutdown")
        async with asyncio.timeout(PATIENCE_S):
            out, _ = await program.communicate()
    finally:
        if program.returncode is None:
            program.kill()
            await program.communicate()
    assert program.returncode == 0
    assert ("beats" in out.decode()) == (mode == "beside")
