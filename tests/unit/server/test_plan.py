from pathlib import Path
from typing import Any

import pytest

from fedops_mqtt.aggregation.errors import ServerConfigError
from fedops_mqtt.aggregation.run_settings import fit_config, make_compression, make_limits, make_plan
from fedops_mqtt.protocol import IdentityError, check_run_id
from fedops_mqtt.runtime.settings import ServerSettings

CFG = {"task_id": "cfg", "num_rounds": 7, "batch_size": 32, "num_epochs": 2}


class Namespace:
    task_id = "attributes"
    num_rounds = 4


def test_cfg_outranks_the_environment_of_a_server_started_by_hand() -> None:
    plan = make_plan(ServerSettings(task_id="env", num_rounds=3, min_clients=4), CFG)
    assert (plan.task_id, plan.num_rounds, plan.min_clients) == ("cfg", 7, 4)
    assert (plan.join, plan.launch, plan.is_resumable) == ("open", 0, False)
    assert check_run_id(plan.run_id).startswith("cfg-")


def test_settings_of_the_launcher_override_cfg(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0a0b\n")
    settings = ServerSettings(task_id="env", run_id="r", launch=2, num_rounds=3, run_secret_file=secret)
    plan = make_plan(settings, CFG)
    assert (plan.task_id, plan.run_id, plan.num_rounds, plan.launch) == ("env", "r", 3, 2)
    assert (plan.join, plan.run_secret, plan.is_resumable) == ("invited", b"\n\x0b", True)


def test_attributes_are_read_as_entries_are() -> None:
    assert make_plan(ServerSettings(), Namespace()).num_rounds == 4


@pytest.mark.parametrize(
    ("cfg", "error", "text"),
    [
        ({}, ServerConfigError, "no task id"),
        ({"task_id": "a/b"}, IdentityError, "task_id 'a/b'"),
        ({"task_id": "t", "num_rounds": "many"}, ServerConfigError, "num_rounds is 'many', not a whole number"),
        ({"task_id": "t", "num_rounds": -1}, ServerConfigError, "num_rounds is -1"),
        ({"task_id": "t", "min_clients": 0}, ServerConfigError, "min_clients is 0"),
    ],
)
def test_what_cannot_be_used_is_named(cfg: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_plan(ServerSettings(), cfg)


@pytest.mark.parametrize("content", ["no hex", None])
def test_a_secret_that_cannot_be_read_is_named_without_its_content(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ServerConfigError, match=r"run secret file .* cannot be used") as raised:
        make_plan(ServerSettings(task_id="t", run_secret_file=path), None)
    assert "no hex" not in str(raised.value)


def test_limits_and_compression_are_the_settings() -> None:
    settings = ServerSettings(join_limit_s=1, round_limit_s=2, run_limit_s=3, compress_level=5)
    limits, compression = make_limits(settings), make_compression(settings)
    assert (limits.join_s, limits.round_s, limits.run_s) == (1, 2, 3)
    assert compression is not None
    assert compression.level == 5
    assert make_compression(ServerSettings()) is None


def test_clients_get_the_configuration_that_fedops_gives_them() -> None:
    assert fit_config(CFG, 7) == {"batch_size": 32, "local_epochs": 2, "num_rounds": 7}
    assert fit_config(None, 7) == {}


def test_the_rounds_that_a_run_is_started_with_outweigh_everything() -> None:
    settings = ServerSettings(task_id="t", run_id="r", num_rounds=3, run_config="num-server-rounds=7 lr=0.5")
    plan = make_plan(settings, {"num_rounds": 4})
    assert (plan.num_rounds, plan.run_config) == (7, {"num-server-rounds": 7, "lr": 0.5})


def test_rounds_of_a_run_that_are_no_number_are_refused() -> None:
    with pytest.raises(ServerConfigError, match="num_rounds"):
        make_plan(ServerSettings(task_id="t", run_config='num-server-rounds="many"'), None)


def test_a_plan_knows_whether_the_number_of_rounds_was_set() -> None:
    assert not make_plan(ServerSettings(task_id="t"), None).is_num_rounds_set
    assert make_plan(ServerSettings(task_id="t", num_rounds=3), None).is_num_rounds_set
    assert make_plan(ServerSettings(task_id="t"), {"num_rounds": 4}).is_num_rounds_set
