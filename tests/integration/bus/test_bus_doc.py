"""What docs/bus.md shows works."""

import asyncio
import re
import sys
from pathlib import Path

from bus_helpers import MAC, PATIENCE_S, reader_of, status

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.protocol import topics

DOC = Path(__file__).parents[3] / "docs" / "bus.md"


async def test_the_watching_program_prints_what_is_retained(broker: Mosquitto) -> None:
    program = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)[0]
    program = program.replace("mqtt://127.0.0.1:1883", broker.url)
    async with reader_of(broker) as writer:
        await writer.publish(topics.client_status("my-task", MAC), status("my-task"))
    process = await asyncio.create_subprocess_exec(sys.executable, "-u", "-c", program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
    process.kill()
    await process.communicate()
    assert line.startswith(b"ClientStatus ")
    assert b"task_id='my-task'" in line
