"""What the README's "Use it for real" says, done with the commands that it shows."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from ports import free_port
from reader import observing
from safetensors.numpy import load_file
from yard import TIMEOUT_S, Yard

from fedops_mqtt.protocol import ClientCondition

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_task"


def commands_for_real() -> dict[str, list[str]]:
    """The `fedops-mqtt` commands of that section, by verb."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Use it for real")[2].partition("\n## ")[0]
    lines = re.findall(r"^(?:\.venv/bin/)?fedops-mqtt (.+?)(?:\s+#.*)?$", section, re.MULTILINE)
    return {shlex.split(line)[0]: shlex.split(line) for line in lines}


def test_the_readme_shows_the_example_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    program = (EXAMPLE / "my_task.py").read_text(encoding="utf-8")
    assert program in readme
    assert (EXAMPLE / "tasks.toml").read_text(encoding="utf-8") in readme
    assert len(program.splitlines()) < 30


@pytest.mark.long
@pytest.mark.parametrize("task_id", ["line"])
async def test_a_task_of_ones_own_runs_with_the_commands_of_the_readme(yard: Yard, task_id: str) -> None:
    shown = commands_for_real()
    assert {"broker", "manager", "client", "start", "watch"} <= set(shown)
    at = {"broker_port": free_port(), "http": free_port()}
    broker, api = f"mqtt://127.0.0.1:{at['broker_port']}", f"http://127.0.0.1:{at['http']}"

    def real(verb: str) -> list[str]:
        """A command as shown, but for the host names and ports, which must be free here."""
        here = {r"mqtt://[\w.]+:1883": broker, r"127\.0\.0\.1:8003": "127.0.0.1:0"}
        return [re.sub("|".join(here), lambda found: _here(found.group(), here), word) for word in shown[verb]]

    mosquitto = await yard.start(*real("broker"), broker_port=at["broker_port"])
    await mosquitto.until_printed(f"^{broker}")
    folder = yard.folder
    manager = await yard.start(
        *real("manager"), cwd=EXAMPLE, http=f"127.0.0.1:{at['http']}", state_dir=folder / "m", store=folder / "models"
    )
    await manager.until_printed("API at")
    async with observing(broker, task_id) as observer:
        for number in (1, 2):
            mac = f"02:00:00:00:00:0{number}"
            await yard.start(*real("client"), "--mac", mac, "--state-dir", str(folder / f"c{number}"), cwd=EXAMPLE)
            await observer.until_client(mac, ClientCondition.ONLINE)
        started = await yard.run(*real("start"), manager=api, timeout_s=2 * TIMEOUT_S)
        assert started.process.returncode == 0, started.stderr
        await observer.until_only_ended()  # the manager's answer may come before the bus has it
        seen = await yard.run(*real("watch"), "--once")
        assert "outcome=completed" in seen.stdout
    (model,) = (folder / "models").rglob("*.safetensors")
    (line,) = load_file(model).values()
    np.testing.assert_allclose(line, [3, 1], atol=0.1)


def _here(found: str, here: dict[str, str]) -> str:
    return next(own for pattern, own in here.items() if re.fullmatch(pattern, found))
