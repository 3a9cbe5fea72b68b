"""Apps that come to the device: what its owner allows trains, and of nothing else has a line run."""

import ast
import asyncio
import hashlib
import random
import stat
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from io import BytesIO
from pathlib import Path

import pytest
from bundles import manifest_of, zipped
from client_testbed import SECRET, Operator, RunDaemon
from fl_server import serve

from fedops_mqtt.apps import AppLibrary, AppSigner, make_signing_key
from fedops_mqtt.bus import Connection, Mosquitto, Received
from fedops_mqtt.device.app_policy import app_folder
from fedops_mqtt.device.journal import identity_dir
from fedops_mqtt.line.grid import RunEndedError
from fedops_mqtt.line.server import LineServer
from fedops_mqtt.protocol import (
    Answer,
    Channel,
    ClientCondition,
    ClientStatus,
    Outcome,
    Phase,
    RunOutcome,
    ServerStatus,
    filter_for,
)
from fedops_mqtt.runtime.settings import inherited_environment

SIGNER = AppSigner(make_signing_key())
PROJECT = """
[project]
name = "adding"
version = "1.0.0"
dependencies = ["flwr>=1.0"]
[tool.flwr.app]
publisher = "tester"
[tool.flwr.app.components]
clientapp = "delivered_adding:app"
[tool.flwr.app.config]
lr = 0.1
name = "project"
"""
CODE = """
import sys
from pathlib import Path
Path({marker!r}).write_text("ran")
from flwr.app import MetricRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    config = dict(context.run_config)
    Path({marker!r}).write_text(repr((config, sys.path[0], __file__)))
    metrics = MetricRecord({{"num-examples": 1, "lr": float(config["lr"])}})
    return Message(RecordDict({{"arrays": message.content["arrays"], "metrics": metrics}}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({{"metrics": MetricRecord({{"num-examples": 1}})}}), reply_to=message)
"""
Make = Callable[..., bytes]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is there as soon as a line of the app has run."""
    return tmp_path / "marker"


@pytest.fixture
def make_bundle(marker: Path) -> Make:
    def make(project: str = PROJECT, **more: bytes) -> bytes:
        files = {"pyproject.toml": project.encode(), "delivered_adding.py": CODE.format(marker=str(marker)).encode()}
        return zipped(files | more)

    return make


@contextmanager
def line(app: bytes | None, launch: int = 1) -> Iterator[LineServer]:
    with LineServer(run_id="r1", launch=launch, run_secret=SECRET, app=app) as server:
        yield server


@asynccontextmanager
async def training_line(app: bytes, launch: int = 1) -> AsyncIterator[LineServer]:
    with line(app, launch) as server:
        serving = asyncio.create_task(asyncio.to_thread(serve, server, 1))
        try:
            yield server
        finally:
            server.interrupt(RunOutcome.STOPPED, "the test is over")
            with suppress(RunEndedError):
                await serving


def reference(data: bytes, task_id: str, version: str = "1.0.0", **changes: object) -> Mapping[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    signature = SIGNER.sign(digest=digest, task_id=task_id, version=version).model_dump()
    return {"digest": digest, "version": version, "size": len(data), **signature, **changes}


def has_run(marker: Path) -> bool:
    return marker.exists()


def trained_with(marker: Path) -> tuple[dict[str, object], str, str]:
    """What the app wrote down in its training: its configuration, the first folder of its path, its own file."""
    config, path, source = ast.literal_eval(marker.read_text(encoding="utf-8"))
    return config, path, source


def is_rejected(status: ClientStatus) -> bool:
    return status.last_trigger is not None and status.last_trigger.answer is Answer.REJECTED


async def test_a_signed_app_is_fetched_once_and_trains_in_two_runs_with_each_runs_settings(
    run_daemon: RunDaemon, operator: Operator, make_bundle: Make, marker: Path, tmp_path: Path, task_id: str, mac: str
) -> None:
    data = make_bundle()
    await run_daemon(app="delivered", app_signers=SIGNER.public_key, run_config='name="device" batch=1')
    await operator.until_condition(ClientCondition.ONLINE)
    app = reference(data, task_id)
    async with training_line(data) as server:
        await operator.trigger(server.address, app=app, run_config={"lr": 0.5})
        seen = await operator.until_condition(ClientCondition.TRAIN_FINISHED)
    assert seen.last_run is not None
    assert seen.last_run.outcome is Outcome.FINISHED
    config, path, source = trained_with(marker)
    assert config == {"lr": 0.5, "name": "device", "batch": 1, "batch_size": 32}
    folder = app_folder(identity_dir(tmp_path, task_id, mac)) / str(app["digest"])
    assert (path, source) == (str(folder), str(folder / "delivered_adding.py"))
    assert not (folder / "__pycache__").exists()
    assert any(each.run is not None and each.run.phase is Phase.DOWNLOADING for each in operator.statuses)

    # The second run's server has no app: what is kept is enough. Its settings are not those of the first.
    with LineServer(run_id="r2", launch=1, run_secret=SECRET) as other:
        serving = asyncio.create_task(asyncio.to_thread(serve, other, 1))
        await operator.trigger(other.address, run_id="r2", app=app)
        await operator.until(lambda status: status.last_run is not None and status.last_run.run_id == "r2")
        await serving
    assert trained_with(marker)[0]["lr"] == 0.1


SERVER_CODE = b"""
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    print("the ServerApp has", sorted(config.items()), flush=True)
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    start = ArrayRecord({"w": Array(np.zeros(2, dtype=np.float32))})
    strategy.start(grid=grid, initial_arrays=start, num_rounds=config["num-server-rounds"])
"""


async def test_one_bundle_runs_at_the_fl_server_and_on_the_device_with_the_runs_settings(
    run_daemon: RunDaemon,
    operator: Operator,
    broker: Mosquitto,
    make_bundle: Make,
    marker: Path,
    tmp_path: Path,
    task_id: str,
) -> None:
    project = PROJECT.replace("[tool.flwr.app.config]", 'serverapp = "delivered_serving:app"\n[tool.flwr.app.config]')
    data = make_bundle(project, **{"delivered_serving.py": SERVER_CODE})
    (tmp_path / "app.fab").write_bytes(data)
    (tmp_path / "secret").write_text(SECRET.hex(), encoding="ascii")
    said = {"task_id": task_id, "run_id": "r1", "launch": 1, "min_clients": 1, "num_rounds": 1, "broker": broker.url}
    said |= {"app_file": tmp_path / "app.fab", "run_secret_file": tmp_path / "secret", "store": tmp_path / "store"}
    said |= {"state_dir": tmp_path / "server", "run_config": "lr=0.25 num-server-rounds=2"}
    environment = inherited_environment() | {f"FEDOPS_MQTT_{name.upper()}": str(value) for name, value in said.items()}
    await run_daemon(app="delivered", app_signers=SIGNER.public_key)
    await operator.until_condition(ClientCondition.ONLINE)
    async with Connection(broker.url, subscriptions=[filter_for(Channel.SERVER_STATUS, task_id)]) as bus:
        program = (sys.executable, "-m", "fedops_mqtt.server.bundle_server")
        server = await asyncio.create_subprocess_exec(*program, env=environment, stdout=asyncio.subprocess.PIPE)
        try:
            async for event in bus.events():
                if isinstance(event, Received) and isinstance(event.message, ServerStatus) and event.message.server_ip:
                    break
            await operator.trigger(event.message.server_ip, app=reference(data, task_id), run_config={"lr": 0.25})
            await operator.until_condition(ClientCondition.TRAIN_FINISHED)
            output, _ = await server.communicate()
        finally:
            if server.returncode is None:
                server.kill()
    assert server.returncode == 0
    assert "('lr', 0.25), ('name', 'project'), ('num-server-rounds', 2)" in output.decode()
    assert trained_with(marker)[0]["lr"] == 0.25
    await operator.until_metrics(lambda said: said.round == 2 and said.values.get("stage") == "train")
    assert {metrics.round for metrics in operator.metrics if metrics.values.get("stage") == "train"} == {1, 2}


ODD = {"pyproject.toml": PROJECT.encode(), "../evil.py": b"x"}


@pytest.mark.parametrize(
    ("project", "spoil", "changes", "code"),
    [
        (PROJECT, lambda data: data, {"digest": "ab" * 32}, "app-bad-signature"),
        (PROJECT, lambda data: data, {"key_id": None}, "app-unsigned"),
        (PROJECT, lambda data: data[:-1], {}, "app-malformed"),
        (PROJECT, lambda data: zipped(ODD), {}, "app-malformed"),
        (PROJECT, lambda data: zipped(ODD, manifest_of({"pyproject.toml": b""})), {}, "app-malformed"),
        (PROJECT.replace("1.0.0", "1.0.1"), lambda data: data, {}, "app-malformed"),
        (PROJECT.replace("clientapp", "# clientapp"), lambda data: data, {}, "app-malformed"),
        (PROJECT.replace("flwr>=1.0", "no-such-package-here>=3"), lambda data: data, {}, "dependencies-missing"),
    ],
)
async def test_a_refused_app_is_reported_with_its_code_and_not_a_line_of_it_runs(
    run_daemon: RunDaemon,
    operator: Operator,
    make_bundle: Make,
    marker: Path,
    task_id: str,
    project: str,
    spoil: Callable[[bytes], bytes],
    changes: dict[str, object],
    code: str,
) -> None:
    data = spoil(make_bundle(project))
    await run_daemon(app="delivered", app_signers=SIGNER.public_key)
    await operator.until_condition(ClientCondition.ONLINE)
    with line(data) as server:
        await operator.trigger(server.address, app=reference(data, task_id, **changes))
        status = await operator.until(is_rejected)
    assert status.last_trigger is not None
    assert status.last_trigger.reason_code == code
    assert status.last_trigger.reason
    assert (status.run, status.last_run, status.status) == (None, None, ClientCondition.ONLINE)
    assert not has_run(marker)


def with_kind(kind: int) -> Callable[[bytes], bytes]:
    """Return what makes a bundle's code a file of another kind."""
    return lambda data: zipped(contents(data), attributes={"delivered_adding.py": kind | 0o777})


def contents(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != ".info/CONTENT"}


def unlisted(data: bytes) -> bytes:
    return zipped(contents(data) | {"sitecustomize.py": b"x"}, manifest_of(contents(data)))


def bomb(data: bytes) -> bytes:
    return zipped(contents(data) | {"zeros.bin": bytes(101 * 2**20)})


def as_it_is(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize(
    ("spoil", "settings", "signed_for", "code"),
    [
        (with_kind(stat.S_IFLNK), {}, None, "app-malformed"),
        (with_kind(stat.S_IFCHR), {}, None, "app-malformed"),
        (with_kind(stat.S_IFBLK), {}, None, "app-malformed"),
        (with_kind(stat.S_IFIFO), {}, None, "app-malformed"),
        (unlisted, {}, None, "app-malformed"),
        (bomb, {}, None, "app-too-large"),
        (as_it_is, {"app_max_bytes": 1024}, None, "app-too-large"),
        (as_it_is, {}, "another-task", "app-bad-signature"),
        (as_it_is, {"app_min_version": "1.0.1"}, None, "app-too-old"),
        (as_it_is, {"app_signers": AppSigner(make_signing_key()).public_key}, None, "app-unknown-signer"),
        (as_it_is, {"app": "delivered-after-approval"}, None, "app-not-approved"),
        (as_it_is, {"app": "fl_apps:counting"}, None, "app-not-delivered"),
    ],
    ids=[
        "link", "character device", "block device", "pipe", "not listed", "bomb", "too large", "other task", "too old",
        "unknown signer", "not approved", "app of its own",
    ],
)  # fmt: skip
async def test_what_its_owner_did_not_allow_is_refused_and_not_a_line_of_it_has_run(
    run_daemon: RunDaemon,
    operator: Operator,
    make_bundle: Make,
    marker: Path,
    tmp_path: Path,
    task_id: str,
    mac: str,
    spoil: Callable[[bytes], bytes],
    settings: dict[str, object],
    signed_for: str | None,
    code: str,
) -> None:
    data = spoil(make_bundle(more=random.Random(1).randbytes(2000)))
    await run_daemon(**{"app": "delivered", "app_signers": SIGNER.public_key} | settings)
    await operator.until_condition(ClientCondition.ONLINE)
    with line(data) as server:
        await operator.trigger(server.address, app=reference(data, signed_for or task_id))
        status = await operator.until(is_rejected)
    assert status.last_trigger is not None
    assert (status.last_trigger.reason_code, bool(status.last_trigger.reason)) == (code, True)
    assert not has_run(marker)
    assert not list(app_folder(identity_dir(tmp_path, task_id, mac)).rglob("*.py"))


async def test_an_app_trains_once_its_owner_has_approved_it(
    run_daemon: RunDaemon, operator: Operator, make_bundle: Make, marker: Path, tmp_path: Path, task_id: str, mac: str
) -> None:
    data = make_bundle()
    app = reference(data, task_id)
    await run_daemon(app="delivered-after-approval", app_signers=SIGNER.public_key)
    await operator.until_condition(ClientCondition.ONLINE)
    async with training_line(data) as server:
        await operator.trigger(server.address, app=app)
        status = await operator.until(is_rejected)
        assert status.last_trigger is not None
        assert f"app approve {app['digest']}" in (status.last_trigger.reason or "")
        assert not has_run(marker)
        AppLibrary(app_folder(identity_dir(tmp_path, task_id, mac))).approve(str(app["digest"]))
        await operator.trigger(server.address, attempt=2, app=app)
        await operator.until_condition(ClientCondition.TRAIN_FINISHED)
    assert has_run(marker)


async def test_a_server_that_sends_another_bundle_is_detected_and_its_bytes_are_not_kept(
    run_daemon: RunDaemon, operator: Operator, make_bundle: Make, marker: Path, tmp_path: Path, task_id: str, mac: str
) -> None:
    data, other = make_bundle(), make_bundle(more=b"more")
    app = reference(data, task_id, size=len(other))
    await run_daemon(app="delivered", app_signers=SIGNER.public_key)
    await operator.until_condition(ClientCondition.ONLINE)
    with line(other) as server:
        server._app._app.digest = str(app["digest"])  # type: ignore[union-attr]
        await operator.trigger(server.address, app=app)
        status = await operator.until(is_rejected)
    assert status.last_trigger is not None
    assert status.last_trigger.reason_code == "app-digest-mismatch"
    assert not has_run(marker)
    assert not list(app_folder(identity_dir(tmp_path, task_id, mac)).glob("*.part"))


async def test_what_an_earlier_transfer_left_wrong_is_fetched_anew(
    run_daemon: RunDaemon, operator: Operator, make_bundle: Make, marker: Path, tmp_path: Path, task_id: str, mac: str
) -> None:
    data = make_bundle()
    app = reference(data, task_id)
    AppLibrary(app_folder(identity_dir(tmp_path, task_id, mac))).partial(str(app["digest"])).write_bytes(b"wrong")
    await run_daemon(app="delivered", app_signers=SIGNER.public_key)
    await operator.until_condition(ClientCondition.ONLINE)
    async with training_line(data) as server:
        await operator.trigger(server.address, app=app)
        await operator.until_condition(ClientCondition.TRAIN_FINISHED)
    assert has_run(marker)


async def test_a_stop_while_the_app_is_fetched_ends_the_start_and_the_daemon_answers_meanwhile(
    run_daemon: RunDaemon, operator: Operator, make_bundle: Make, marker: Path, task_id: str
) -> None:
    await run_daemon(app="delivered", app_signers=SIGNER.public_key)
    await operator.until_condition(ClientCondition.ONLINE)
    data = make_bundle()
    await operator.trigger("127.0.0.1:1", app=reference(data, task_id))
    await operator.until(lambda status: status.run is not None and status.run.phase is Phase.DOWNLOADING)
    await operator.trigger("127.0.0.1:1", run_id="r2", app=reference(data, task_id))
    busy = await operator.until(is_rejected)
    assert busy.run is not None
    await operator.stop()
    ended = await operator.until(lambda status: status.last_run is not None)
    assert ended.last_run is not None
    assert ended.last_run.outcome is Outcome.STOPPED
    assert not has_run(marker)


async def test_a_server_that_moves_while_the_app_is_fetched_is_followed(
    run_daemon: RunDaemon, operator: Operator, make_bundle: Make, marker: Path, task_id: str
) -> None:
    await run_daemon(app="delivered", app_signers=SIGNER.public_key)
    await operator.until_condition(ClientCondition.ONLINE)
    data = make_bundle()
    await operator.trigger("127.0.0.1:1", app=reference(data, task_id))
    await operator.until(lambda status: status.run is not None and status.run.phase is Phase.DOWNLOADING)
    async with training_line(data, launch=2) as server:
        await operator.trigger(server.address, launch=2, app=reference(data, task_id))
        await operator.until_condition(ClientCondition.TRAIN_FINISHED)
    assert has_run(marker)
