"""FedOps' views, made of our client."""

import subprocess
import sys
import uuid

import pytest

from fedops_mqtt.client.client_utils import NoMacAddressError, get_hostname, get_mac_address, view_of
from fedops_mqtt.core.client import Client, Identity, apply
from fedops_mqtt.core.client_events import Left, LocalStart, TrainingEnded
from fedops_mqtt.protocol import Outcome, normalise_mac

CLIENT = Client(
    identity=Identity(task_id="t", client_mac="02:00:00:00:00:01", client_name="pi", instance="i"),
)


def test_a_view_follows_the_client() -> None:
    assert (view_of(CLIENT).client_online, view_of(CLIENT).client_start) == (True, False)
    training = apply(CLIENT, LocalStart(server_ip="h:1", client_mac="02:00:00:00:00:01")).client
    assert (view_of(training).client_start, view_of(training).server_IP) == (True, "h:1")
    failed = apply(training, TrainingEnded(run_id="local-1", attempt=1, outcome=Outcome.FAILED)).client
    assert (view_of(failed).client_start, view_of(failed).client_fail) == (False, True)
    assert view_of(apply(failed, Left(reason="shutdown")).client).client_online is False


def test_the_first_names_say_the_same() -> None:
    both = view_of(CLIENT).with_first_names()
    for first, name in {"FL_task_id": "task_id", "FL_server_IP": "server_IP", "FL_next_gl_model": "gl_model"}.items():
        assert both[first] == both[name]


def test_this_machine_has_a_name_and_a_mac_or_says_that_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
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
