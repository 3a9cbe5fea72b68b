"""FedOps' views, made of our client."""

import subprocess
import sys
import uuid
from typing import Any

import pytest
from pydantic import ValidationError

from fedops_mqtt.client.client_utils import ManagerData, NoMacAddressError, get_hostname, get_mac_address, view_of
from fedops_mqtt.core.client import Client, Identity, apply
from fedops_mqtt.core.client_state import LocalStart, ShutDown, TrainingEnded
from fedops_mqtt.protocol import Outcome, normalise_mac

CLIENT = Client(
    identity=Identity(task_id="t", client_mac="02:00:00:00:00:01", client_name="pi", instance="i"),
)


def test_a_view_follows_the_client() -> None:
    assert (view_of(CLIENT).client_online, view_of(CLIENT).client_start) == (True, False)
    training = apply(CLIENT, LocalStart(server_ip="h:1")).client
    assert (view_of(training).client_start, view_of(training).server_IP) == (True, "h:1")
    failed = apply(training, TrainingEnded(outcome=Outcome.FAILED)).client
    assert (view_of(failed).client_start, view_of(failed).client_fail) == (False, True)
    assert view_of(apply(failed, ShutDown(reason="shutdown")).client).client_online is False


def test_the_first_names_publish_the_same_and_the_model_that_is_made_next() -> None:
    training = apply(CLIENT, LocalStart(server_ip="h:1", gl_model=7)).client
    both = view_of(training).with_first_names()
    for first, name in {"FL_task_id": "task_id", "FL_server_IP": "server_IP"}.items():
        assert both[first] == both[name]
    assert (both["gl_model"], both["FL_next_gl_model"]) == (7, 8)


def test_a_start_by_a_client_manager_keeps_what_it_is_given() -> None:
    data = ManagerData(server_ip="10.0.0.1:8080", client_mac="02-00-00-00-00-0A")
    assert (data.server_ip, data.client_mac) == ("10.0.0.1:8080", "02:00:00:00:00:0a")
    assert ManagerData().model_dump() == {"server_ip": None, "client_mac": None}


@pytest.mark.parametrize(
    "fields",
    [
        {"server_ip": "h:0"},
        {"server_ip": "h:65536"},
        {"server_ip": ""},
        {"server_ip": "h p:1"},
        {"server_ip": "x" * 301},
        {"server_ip": 7},
        {"client_mac": "me"},
        {"client_mac": 7},
    ],
)
def test_a_start_by_a_client_manager_is_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ManagerData(**fields)


def test_this_machine_has_a_name_and_a_mac_or_an_error_names_the_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_hostname()
    monkeypatch.setattr(uuid, "getnode", lambda: 0x0242AC110002)
    assert get_mac_address() == normalise_mac(get_mac_address()) == "02:42:ac:11:00:02"
    monkeypatch.setattr(uuid, "getnode", lambda: 0x0342AC110002)  # the multicast bit: a number that was made up
    with pytest.raises(NoMacAddressError, match="--mac"):
        get_mac_address()


def test_a_client_is_imported_without_any_framework() -> None:
    program = """
import sys
import fedops_mqtt.client.app, fedops_mqtt.client.client_api, fedops_mqtt.client.client_wandb
import fedops_mqtt.client.client_utils, fedops_mqtt.client.client_fl
print({"flwr", "torch", "wandb", "numpy", "grpc", "sqlalchemy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
