"""A registration of live objects trains in a process of its own, and says what FedOps' client says."""

import asyncio
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from client_testbed import HERE, PATIENCE_S, SECRET, Operator, ServeFl
from safetensors.numpy import load_file

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.protocol import ClientCondition, MetricsKind


@pytest.mark.long
async def test_a_program_with_live_objects_trains_twice_and_publishes_fedops_results(
    operator: Operator, serve_fl: ServeFl, broker: Mosquitto, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"task_id: {operator.task_id}\nmodel_type: Numpy\nbatch_size: 4\nnum_epochs: 3\n")
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "live_main.py"), str(config), operator.mac, broker.url, str(tmp_path / "state")),
        cwd=tmp_path,
    )
    try:
        await operator.until_condition(ClientCondition.ONLINE)
        for number in (1, 2):
            run_id = f"r{number}"
            await operator.trigger(
                await serve_fl("line", run_id, SECRET.hex(), "2"), run_id=run_id, attempt=number, gl_model=number
            )
            finished = await operator.until(
                lambda status, run_id=run_id: status.last_run is not None and status.last_run.run_id == run_id
            )
            assert finished.status is ClientCondition.TRAIN_FINISHED, finished.reason
            kept = load_file(tmp_path / f"local_model/{operator.task_id}/Line_local_model_V{number}.safetensors")
            np.testing.assert_array_equal(kept["0"], [6, 6])
        await operator.until_metrics(lambda said: said.kind is MetricsKind.TIME_RESULT and said.run_id == "r2")
        program.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            assert await program.wait() == 0
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    said = [each for each in operator.metrics if each.run_id == "r2"]
    trained = next(each for each in said if each.kind is MetricsKind.TRAIN_RESULT and each.round == 2)
    assert trained.values["train_loss"] == 12.0
    assert trained.values["train_f1_score"] == 0.25
    assert {"fl_task_id", "client_mac", "client_name", "gl_model_v", "train_time", "wandb_name"} <= set(trained.values)
    tested = next(each for each in said if each.kind is MetricsKind.TEST_RESULT)
    assert (tested.values["test_loss"], tested.values["test_accuracy"]) == (6.0, 0.5)
    system = next(each for each in said if "mine.batch" in each.values)  # the daemon tells of its system too
    assert (system.kind, system.values["cpu"], system.values["mine.batch"], system.round) == (
        MetricsKind.SYSTEM,
        0.5,
        4,
        7,
    )
