"""What can be known of an app before it trains, and how Flower's older factories are asked."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common import GetParametersIns

from fedops_mqtt.core.client import Identity
from fedops_mqtt.device.training_process import check_app as check_in_a_process
from fedops_mqtt.line import flwr_private
from fedops_mqtt.protocol import RunStart
from fedops_mqtt.training.app_loading import AppError, check_app, load_app
from fedops_mqtt.training.pipe import Job

GOOD = """
import os, sys
from flwr.clientapp import ClientApp
app = ClientApp()
print("noise " * 100_000, file=sys.stderr)
os.write(1, b"noise")
def factory(): raise RuntimeError("is not called")
def client_fn(cid: str): raise RuntimeError("is not called")
class Nested: app = app
registration = {"model": None}
number, text, Other = 1, "app", dict
"""


@pytest.fixture
def module(tmp_path: Path) -> Callable[[str], str]:
    def make(source: str) -> str:
        name = f"app_of_{os.urandom(6).hex()}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return make


@pytest.mark.parametrize("name", ["app", "factory", "client_fn", "Nested.app", "registration"])
def test_an_app_that_is_there_is_not_called_to_find_out(
    module: Callable[[str], str], tmp_path: Path, name: str
) -> None:
    check_app(f"{module(GOOD)}:{name}", (str(tmp_path),))


@pytest.mark.parametrize(
    ("source", "name", "problem"),
    [
        (GOOD, "nothing", "has no 'nothing'"),
        (GOOD, "number", "it is int"),
        (GOOD, "text", "it is str"),
        (GOOD, "Other", "the class dict"),
        ("import a_module_that_is_none", "app", "'a_module_that_is_none', which is not installed"),
        ("1 / 0", "app", "ZeroDivisionError"),
        ("raise SystemExit(3)", "app", "SystemExit"),
        ("def broken(:", "app", "SyntaxError"),
        ("raise ValueError('\\udc80' + 'x' * 100000)", "app", "ValueError"),
    ],
)
def test_an_app_that_cannot_be_one_is_known_before_it_trains(
    module: Callable[[str], str], tmp_path: Path, source: str, name: str, problem: str
) -> None:
    with pytest.raises(AppError, match=problem):
        check_app(f"{module(source)}:{name}", (str(tmp_path),))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (GOOD, None),
        ("raise ValueError('\\udc80' + 'x' * 100000)", "ValueError"),
        ("import os; os._exit(7)", "status 7"),
    ],
)
async def test_a_process_of_its_own_reports_it_whatever_the_app_does(
    module: Callable[[str], str], tmp_path: Path, source: str, says: str | None
) -> None:
    async with asyncio.timeout(300):
        problem = await check_in_a_process(f"{module(source)}:app", (str(tmp_path),), state_folder=tmp_path)
    assert (problem is None) is (says is None)
    assert says is None or (says in str(problem) and len(str(problem)) < 4096)


OLD = """
from flwr.client import NumPyClient
asked = []
class Client(NumPyClient):
    def get_parameters(self, config): return []
def annotated(cid: str): asked.append(cid); return Client()
def quoted(number: "str"): asked.append(number); return Client()
def named(cid): asked.append(cid); return Client()
def today(context): asked.append(context); return Client()
"""


@pytest.mark.parametrize("name", ["annotated", "quoted", "named", "today"])
def test_a_client_fn_of_flowers_older_versions_gets_its_partition(
    module: Callable[[str], str], tmp_path: Path, name: str
) -> None:
    home = module(OLD)
    app = load_app(job_of(f"{home}:{name}", tmp_path), registers_nothing)
    flwr_private.set_identity(run_id=1, node_id=2)
    content = flwr_private.legacy_records.getparametersins_to_recorddict(GetParametersIns({}))
    node_config: dict[str, Any] = {"partition-id": 3}
    context = Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={})
    app(Message(content, 7, "get_parameters"), context)
    assert sys.modules[home].asked == [context if name == "today" else "3"]


def registers_nothing(job: Job, cfg: Any) -> Callable[[Any], NoReturn]:
    return lambda registration: pytest.fail("it is no registration")


def job_of(app: str, folder: Path) -> Job:
    return Job(
        app=app,
        import_paths=(str(folder),),
        identity=Identity(task_id="t", client_mac="02:00:00:00:00:01", client_name="pi", instance="i"),
        start=RunStart(run_id="r1", attempt=1, launch=1, server_ip="127.0.0.1:1", token=None),
        state_folder=folder,
        join_s=1,
        rejoin_s=1,
        partition_id=3,
        num_partitions=5,
    )


async def test_an_app_whose_check_cannot_be_started_is_left_to_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert await check_in_a_process("any:app", (), state_folder=tmp_path) is None
    assert "the app cannot be checked" in caplog.text
