"""`fedops-mqtt simulate`: virtual clients, either family of strategies, a server or a client that fails."""

import json
from pathlib import Path

import pytest
from examples_run import EXAMPLES, with_config
from yard import Yard

pytestmark = pytest.mark.long

DIGITS = EXAMPLES / "digits_numpy"
SERVER = "server_main.py"
LIMIT_S = 500.0


def simulate_command(tmp_path: Path, *more: str) -> list[str]:
    where = ["--task-config", "config.yaml", "--folder", str(tmp_path / "simulation"), "--json"]
    return ["simulate", "--rounds", "2", *where, *more]


@pytest.mark.parametrize(
    "strategy",
    [
        {"_target_": "flwr.server.strategy.FedAvg", "min_fit_clients": 5, "min_evaluate_clients": 5},
        {"_target_": "flwr.serverapp.strategy.FedAvg", "min_train_nodes": 5, "min_evaluate_nodes": 5},
    ],
    ids=["classic", "message"],
)
async def test_more_clients_than_workers_each_with_its_own_part(
    yard: Yard, tmp_path: Path, strategy: dict[str, object]
) -> None:
    example = with_config("digits_numpy", tmp_path, server={"strategy": strategy})
    arguments = simulate_command(tmp_path, "--app", "client_main:make_fl_task", "--server", SERVER, "--clients", "5")
    run = await yard.start(*arguments, "--workers", "2", cwd=example)
    assert await run.wait(timeout_s=LIMIT_S) == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert (result["outcome"], result["rounds"], result["failed_clients"]) == ("completed", 2, {})
    assert result["metrics"]["accuracy"] > 0.9
    assert result["model_path"].startswith(str(tmp_path))


async def test_a_server_program_that_cannot_start_is_reported_with_its_last_lines(yard: Yard, tmp_path: Path) -> None:
    server = tmp_path / "server_main.py"
    server.write_text("raise RuntimeError('no such data')\n")
    arguments = ["simulate", "--app", "client_main:make_fl_task", "--server", str(server)]
    run = await yard.start(*arguments, "--folder", str(tmp_path / "simulation"), cwd=DIGITS)
    assert await run.wait(timeout_s=LIMIT_S) == 1
    assert "no such data" in run.stderr
    assert "Traceback (most recent call last)" not in run.stderr.partition("Its last lines:")[0]


async def test_clients_that_fail_are_named_with_their_reason(yard: Yard, tmp_path: Path) -> None:
    arguments = simulate_command(tmp_path, "--app", "client_main:no_such_app", "--server", SERVER, "--clients", "2")
    run = await yard.start(*arguments, cwd=DIGITS)
    assert await run.wait(timeout_s=LIMIT_S) == 1
    assert "no_such_app" in run.stderr
