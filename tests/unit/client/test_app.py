"""The front: FedOps' configuration and app become settings and an import path, or a sentence that says what to do."""

import json
import os.path
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.client.app import AppPathError, FLClientTask, import_path_of
from fedops_mqtt.core.client import Client, snapshot
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.device.daemon import Daemon
from fedops_mqtt.device.identity import ClientConfigError
from fedops_mqtt.protocol import decode, encode, topics, utc_now
from fedops_mqtt.runtime.settings import ClientSettings
from fedops_mqtt.runtime.task_config import flatten

MAC = "02:00:00:00:00:01"
an_app = SimpleNamespace()


class AClient:
    pass


@dataclass
class Wandb:
    use: bool = True
    project: str = "p"
    key: str = "secret"


@dataclass
class Cfg:
    task_id: str = "digits"
    batch_size: int = 32
    num_epochs: int = 2
    wandb: Wandb = field(default_factory=Wandb)


class Lazy(Mapping):  # type: ignore[type-arg]
    """A configuration that is a mapping of another kind, as OmegaConf's is."""

    def __init__(self, values: dict) -> None:  # type: ignore[type-arg]
        self._values = values

    def __getitem__(self, name):  # type: ignore[no-untyped-def]
        value = self._values[name]
        return Lazy(value) if isinstance(value, dict) else value

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


NESTED = {"task_id": "digits", "dataset": {"name": "mnist", "sizes": [1, 2]}, "learning_rate": 0.1, "none": None}


@pytest.mark.parametrize("cfg", [NESTED, Lazy(NESTED)])
def test_a_configuration_becomes_dotted_scalars(cfg: object) -> None:
    assert flatten(cfg) == {"task_id": "digits", "dataset.name": "mnist", "learning_rate": 0.1, "none": None}


def test_a_configuration_of_objects_too() -> None:
    assert flatten(Cfg())["wandb.project"] == "p"
    assert flatten(SimpleNamespace(a=SimpleNamespace(b=1))) == {"a.b": 1}
    loop = SimpleNamespace(a=1)
    loop.me = loop
    assert flatten(loop)["me.me.a"] == 1


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.dictionaries(st.text(), c)))
def test_any_plain_configuration_can_be_sent_to_the_training_process(cfg: object) -> None:
    assert json.loads(json.dumps(flatten(cfg))) == flatten(cfg)


def test_cfg_and_settings_meet() -> None:
    client = FLClientTask(Cfg(), an_app, mac=MAC, client_name="pi", heartbeat_s=5)
    assert (client.settings.task_id, client.settings.wandb_project, client.settings.heartbeat_s) == ("digits", "p", 5)
    assert client.settings.app == f"{__name__}:an_app"
    assert (client.status.task_id, client.status.client_mac, client.status.client_name) == ("digits", MAC, "pi")
    assert client.status.client_start is False
    assert "secret" not in repr(client.settings)


def test_wandb_that_is_not_used_is_off() -> None:
    assert FLClientTask(Cfg(wandb=Wandb(use=False)), an_app, mac=MAC).settings.wandb_project is None


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ClientConfigError, match="task_id"):
        FLClientTask({}, "m:a", mac=MAC)
    with pytest.raises(ClientConfigError, match="MODULE:ATTRIBUTE"):
        FLClientTask({"task_id": "t"}, mac=MAC)


def test_an_app_is_found_by_its_import_path() -> None:
    assert import_path_of("my_task:app") == "my_task:app"
    assert import_path_of(an_app) == f"{__name__}:an_app"
    assert import_path_of(AClient) == f"{__name__}:AClient"
    assert import_path_of(os.path.join) == "posixpath:join"


def test_an_app_that_cannot_be_imported_is_reported_with_what_to_do() -> None:
    with pytest.raises(AppPathError, match=r"no loaded module has it.*pass 'my_task:app'"):
        import_path_of(SimpleNamespace())
    with pytest.raises(AppPathError, match="live models"):
        import_path_of({"model": 1})

    def local() -> None: ...

    with pytest.raises(AppPathError):
        import_path_of(local)


def test_an_app_in_the_started_script_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import __main__

    mine = SimpleNamespace()
    monkeypatch.setattr(__main__, "mine", mine, raising=False)
    with pytest.raises(AppPathError, match="started a second time"):
        import_path_of(mine)


@pytest.mark.parametrize("name", ["x" * 300, "K\udcfcche"])
def test_a_name_that_no_message_takes_is_cut_to_one_that_it_does(name: str, tmp_path: Path) -> None:
    settings = ClientSettings(task_id="t", app="a:b", mac=MAC, client_name=name, state_dir=tmp_path)
    client = Client(identity=Daemon(settings).identity)
    said = snapshot(client, Stamp(1, 1), at=utc_now(), heartbeat_s=60, agent={})
    assert decode(topics.client_status("t", MAC), encode(said)) == said
