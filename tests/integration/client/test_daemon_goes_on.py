"""What goes wrong with a training is that training's end, with its cause: the daemon goes on."""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from bundles import zipped
from client_testbed import HERE, PATIENCE_S, SECRET, Operator, ServeFl

from fedops_mqtt.apps import AppLibrary, BundleLimits, read_bundle
from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.client.app import FLClientTask
from fedops_mqtt.core.client_state import ClientState, LocalStart, PhaseReport
from fedops_mqtt.device.app_delivery import AppDelivery, DeliveredApp
from fedops_mqtt.device.app_policy import app_folder
from fedops_mqtt.device.daemon import Daemon
from fedops_mqtt.device.journal import ClientJournal
from fedops_mqtt.device.trainer import DeliveredTraining, Trainer, Training
from fedops_mqtt.device.training_process import TrainingProcess
from fedops_mqtt.protocol import (
    Answer,
    AppReference,
    ClientCondition,
    ClientStatus,
    Outcome,
    Phase,
    ReasonCode,
    RunStart,
)
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.settings import ClientSettings
from fedops_mqtt.training.pipe import EndedReport


@pytest.fixture
def settings(broker: Mosquitto, operator: Operator, tmp_path: Path) -> ClientSettings:
    fields: dict[str, object] = {"broker": broker.url, "task_id": operator.task_id, "mac": operator.mac}
    fields |= {"state_dir": tmp_path}
    fields |= {"partition_id": 3, "num_partitions": 5, "join_limit_s": PATIENCE_S}
    return ClientSettings.model_validate(fields | {"app": "fl_apps:counting"})


async def test_a_configuration_larger_than_a_message_reaches_the_training_whole(
    broker: Mosquitto, operator: Operator, serve_fl: ServeFl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    cfg: dict[str, object] = {
        "task_id": operator.task_id,
        "text": "x" * 100_000,
        "k" * 1000: 1,
        "best": float("inf"),
        "batch_size": 32,
    }
    cfg["many"] = {f"n{number}": number for number in range(1000)}
    fields: dict[str, Any] = {
        "broker": broker.url,
        "mac": operator.mac,
        "app": "fl_apps:reading",
        "state_dir": tmp_path,
    }
    fields |= {"partition_id": 3, "num_partitions": 5, "join_limit_s": PATIENCE_S}
    async with alongside(FLClientTask(cfg, **fields).fl_client_start(), name="client"):
        await operator.until_condition(ClientCondition.ONLINE)
        await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "1"))
        seen = await operator.until(lambda status: status.last_run is not None)
        assert seen.status is ClientCondition.TRAIN_FINISHED, seen.reason
        await operator.until_metrics(lambda said: "chars" in said.values)
    values = next(said.values for said in operator.metrics if "chars" in said.values)
    assert (values["chars"], values["key"], values["names"]) == (100_000, 1000, 1005)
    assert values["best"] is None  # infinite, which the bus has no number for


class OnceUnable(Trainer):
    """Cannot make its first training."""

    has_failed = False

    def make(self, start: RunStart) -> Training:
        if not self.has_failed:
            self.has_failed = True
            raise ValueError("no training of this")
        return super().make(start)


@pytest.mark.parametrize("is_local", [True, False])
async def test_a_start_whose_training_cannot_be_made_is_refused_and_the_next_one_trains(
    settings: ClientSettings, operator: Operator, serve_fl: ServeFl, *, is_local: bool
) -> None:
    daemon = Daemon(settings, import_paths=(str(HERE),), run_config={"batch_size": 32}, make_trainer=OnceUnable)
    async with alongside(daemon.run(), name="daemon"):
        await operator.until_condition(ClientCondition.ONLINE)
        server_ip = await serve_fl("line", "r1", SECRET.hex(), "1")
        if is_local:
            decision = await daemon.start(LocalStart(server_ip=server_ip))
            assert (decision.answer, decision.reason) == (
                Answer.REJECTED,
                "the training cannot be made: ValueError: no training of this",
            )
        else:
            await operator.trigger(server_ip)
            refused = await operator.until(lambda status: status.last_trigger is not None)
            assert refused.last_trigger is not None
            assert refused.last_trigger.answer is Answer.REJECTED
            assert "no training of this" in (refused.last_trigger.reason or "")
            assert (refused.status, refused.run) == (ClientCondition.ONLINE, None)
        await operator.trigger(server_ip)
        seen = await operator.until(lambda status: status.last_run is not None)
        assert seen.status is ClientCondition.TRAIN_FINISHED, seen.reason


async def test_a_training_that_breaks_off_is_failed_with_its_cause_and_leaves_no_process(
    settings: ClientSettings, operator: Operator
) -> None:
    run_config = {"text": "half a pair: \ud800"}  # as YAML may have it; no pipe carries it
    daemon = Daemon(settings, import_paths=(str(HERE),), run_config=run_config)
    async with alongside(daemon.run(), name="daemon"):
        await operator.until_condition(ClientCondition.ONLINE)
        for run_id in ("r1", "r2"):
            await operator.trigger("127.0.0.1:1", run_id=run_id)
            failed = await operator.until(lambda status, run_id=run_id: _has_failed(status, run_id))
            assert "surrogates not allowed" in (failed.reason or "")
        assert daemon.client.run is None
        assert not [each for each in psutil.Process().children() if "fedops_mqtt.training.process" in each.cmdline()]


def _has_failed(status: ClientStatus, run_id: str) -> bool:
    return status.last_run is not None and (status.last_run.run_id, status.last_run.outcome) == (
        run_id,
        Outcome.FAILED,
    )


class HeldJournal(ClientJournal):
    """Writes nothing while it is held, as a disk that is slow."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_write = threading.Event()
        self.may_write.set()
        self.is_writing = threading.Event()

    def save(self, facts: ClientState) -> None:
        self.is_writing.set()
        self.may_write.wait(PATIENCE_S)
        super().save(facts)


class HeldTraining:
    """Ends when it is let go."""

    def __init__(self, report: Callable[[PhaseReport], None]) -> None:
        self.report = report
        self.may_end = asyncio.Event()

    async def run(self) -> EndedReport:
        await self.may_end.wait()
        return EndedReport(outcome=Outcome.FINISHED)

    def redirect(self, server_ip: str, launch: int) -> None: ...

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        self.may_end.set()


class HeldTrainer(Trainer):
    def __init__(self, *, on_report: Callable[..., None], **options: Any) -> None:
        super().__init__(on_report=on_report, **options)
        self.on_report = on_report
        self.trainings: list[HeldTraining] = []

    def make(self, start: RunStart) -> Training:
        self.trainings.append(HeldTraining(self.on_report))
        return self.trainings[-1]


async def test_a_training_that_ends_while_its_name_is_written_leaves_no_busy_client(
    settings: ClientSettings, operator: Operator
) -> None:
    journals, trainers = list[HeldJournal](), list[HeldTrainer]()

    def make_trainer(**options: Any) -> HeldTrainer:
        trainers.append(HeldTrainer(**options))
        return trainers[-1]

    def make_journal(folder: Path) -> HeldJournal:
        journals.append(HeldJournal(folder))
        return journals[-1]

    daemon = Daemon(settings, make_trainer=make_trainer, make_journal=make_journal)
    async with alongside(daemon.run(), name="daemon"):
        await operator.until_condition(ClientCondition.ONLINE)
        assert (await daemon.start(LocalStart(server_ip="127.0.0.1:1"))).answer is Answer.ACCEPTED
        (journal,) = journals
        (training,) = trainers[0].trainings
        journal.may_write.clear()
        journal.is_writing.clear()
        training.report(PhaseReport(phase=Phase.TRAINING, run_id="digits-1"))
        await asyncio.to_thread(journal.is_writing.wait, PATIENCE_S)
        training.may_end.set()
        await asyncio.sleep(0)  # it ends, and its end waits for the disk
        journal.may_write.set()
        seen = await operator.until(lambda status: status.last_run is not None)
        assert seen.last_run is not None
        assert (seen.last_run.run_id, seen.last_run.outcome, seen.run) == ("digits-1", Outcome.FINISHED, None)
        assert (await daemon.start(LocalStart(server_ip="127.0.0.1:2"))).answer is Answer.ACCEPTED


PROJECT = b"""
[project]
name = "adding"
version = "1.0.0"
[tool.flwr.app]
publisher = "tester"
[tool.flwr.app.components]
clientapp = "adding:app"
"""


async def test_a_stop_between_the_app_and_its_process_is_kept(tmp_path: Path) -> None:
    data = zipped({"pyproject.toml": PROJECT, "adding.py": b""})
    digest = hashlib.sha256(data).hexdigest()
    AppLibrary(app_folder(tmp_path)).install(data, read_bundle(data, digest=digest, limits=BundleLimits()))

    class Stopped(AppDelivery):
        async def prepare(self, start: RunStart) -> DeliveredApp:
            app = await super().prepare(start)
            asyncio.get_running_loop().call_soon(training.stop, "by hand")  # once this task is done
            return app

    def make_process(start: RunStart, app: DeliveredApp) -> TrainingProcess:
        pytest.fail("a process is made of a training that was stopped")

    settings = ClientSettings.model_validate({"app": "delivered"})
    delivery = partial(
        Stopped, settings=settings, client_mac="02:00:00:00:00:01", folder=tmp_path, on_report=lambda _: None
    )
    app = AppReference(digest=digest, version="1.0.0", size=len(data))
    start = RunStart(run_id="r1", attempt=1, launch=1, server_ip="127.0.0.1:1", app=app)
    training = DeliveredTraining(start, delivery=delivery, make_process=make_process)
    assert (await training.run()).outcome is Outcome.STOPPED
