"""Whose apps a device takes up, from its owner's settings: each refusal has its code, and is decided before any I/O."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedops_mqtt.apps import AppLibrary, AppSigner, make_signing_key
from fedops_mqtt.core.client import Client, Identity, apply
from fedops_mqtt.core.client_state import LocalStart
from fedops_mqtt.device.app_policy import AppPolicy, app_folder
from fedops_mqtt.device.identity import ClientConfigError
from fedops_mqtt.protocol import Answer, ReasonCode, RunStart, StartTrigger, utc_now
from fedops_mqtt.runtime.settings import ClientSettings

MAC = "02:00:00:00:00:01"
ME = Identity(task_id="digits", client_mac=MAC, client_name="pi", instance="a")
DIGEST = "ab" * 32
SIGNER = AppSigner(make_signing_key())
STRANGER = AppSigner(make_signing_key())


def start(signer: AppSigner | None = SIGNER, *, signed: object = None, **changes: object) -> StartTrigger:
    facts: dict[str, object] = {"digest": DIGEST, "version": "1.2.0", "size": 1000}
    if signer is not None:
        statement: dict[str, str] = {"digest": DIGEST, "task_id": "digits", "version": "1.2.0"}
        statement |= signed if isinstance(signed, dict) else {}
        facts |= signer.sign(**statement).model_dump()
    said = {"run_id": "r1", "attempt": 1, "launch": 1, "term": 1, "task_id": "digits", "client_mac": MAC}
    said |= {"server_ip": "127.0.0.1:9", "at": utc_now(), "app": facts | changes}
    return StartTrigger.model_validate(said)


def code_of(tmp_path: Path, trigger: StartTrigger | LocalStart, **settings: object) -> str | None:
    wanted = {"app": "delivered", "app_signers": SIGNER.public_key, "broker": "mqtts://broker.example.org"}
    policy = AppPolicy(ClientSettings.model_validate(wanted | settings), ME, tmp_path)
    refusal = policy.refusal(trigger)
    assert refusal is None or (refusal.answer is Answer.REJECTED and refusal.reason)
    return refusal.reason_code if refusal else None


def test_a_signed_app_of_this_task_is_taken(tmp_path: Path) -> None:
    assert code_of(tmp_path, start()) is None
    both = f"{STRANGER.public_key}, {SIGNER.public_key}"
    assert code_of(tmp_path, start(), app_signers=both) is None
    assert code_of(tmp_path, start(), app_signers=[STRANGER.public_key, SIGNER.public_key]) is None
    assert code_of(tmp_path, start(), app_min_version="1.2") is None


@pytest.mark.parametrize(
    ("trigger", "settings", "code"),
    [
        (start(None), {}, "app-unsigned"),
        (start(key_id=None), {}, "app-unsigned"),
        (start(STRANGER), {}, "app-unknown-signer"),
        (start(), {"app_signers": ""}, "app-unknown-signer"),
        (start(signed={"task_id": "other"}), {}, "app-bad-signature"),
        (start(signed={"digest": "cd" * 32}), {}, "app-bad-signature"),
        (start(signed={"version": "1.3.0"}), {}, "app-bad-signature"),
        (start(signature="!"), {}, "app-bad-signature"),
        (start(signature=""), {}, "app-bad-signature"),
        (start(key_id="../../x"), {}, "app-bad-signature"),
        (start(version="2\n"), {}, "app-bad-signature"),
        (start(), {"app_min_version": "1.2.1"}, "app-too-old"),
        (start(size=0), {}, "app-too-large"),
        (start(size=10 * 1024**2 + 1), {}, "app-too-large"),
        (start(), {"app": "delivered-after-approval"}, "app-not-approved"),
        (start(), {"app": "my_task:app"}, "app-not-delivered"),
        (start().model_copy(update={"app": None}), {}, "app-not-delivered"),
        (LocalStart(server_ip="127.0.0.1:9"), {}, "app-not-delivered"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_app_outside_the_policy_is_refused_with_its_code(
    tmp_path: Path, trigger: StartTrigger | LocalStart, settings: dict[str, object], code: str
) -> None:
    assert code_of(tmp_path, trigger, **settings) == code
    assert list(tmp_path.iterdir()) == []


def test_a_device_with_an_app_of_its_own_is_as_before(tmp_path: Path) -> None:
    own = start().model_copy(update={"app": None})
    assert code_of(tmp_path, own, app="my_task:app") is None
    assert code_of(tmp_path, LocalStart(server_ip="127.0.0.1:9"), app="my_task:app") is None


def test_what_its_owner_approved_is_taken_and_only_that(tmp_path: Path) -> None:
    AppLibrary(app_folder(tmp_path)).approve("cd" * 32)
    assert code_of(tmp_path, start(), app="delivered-after-approval") == "app-not-approved"
    AppLibrary(app_folder(tmp_path)).approve(DIGEST)
    assert code_of(tmp_path, start(), app="delivered-after-approval") is None
    assert code_of(tmp_path, start(STRANGER), app="delivered-after-approval") == "app-unknown-signer"


@pytest.mark.parametrize(
    ("broker", "code"),
    [
        ("mqtt://127.0.0.1:1883", None),
        ("mqtt://localhost", None),
        ("mqtt://[::1]:1883", None),
        ("mqtts://localhost", "app-unsigned"),
        ("mqtt://10.0.0.5", "app-unsigned"),
        ("mqtt://127.0.0.1,mqtt://10.0.0.5", "app-unsigned"),
        ("mqtt://localhost.example.org", "app-unsigned"),
        ("mqtt://0.0.0.0", "app-unsigned"),
        ("mqtt://127.0.0.1,mqtt://127.0.0.1:1884", None),
    ],
)
def test_an_unsigned_app_is_taken_on_a_laptop_only(tmp_path: Path, broker: str, code: str | None) -> None:
    assert code_of(tmp_path, start(None), app_signers="", broker=broker) == code


def test_on_a_laptop_a_fleets_device_and_a_pinned_version_still_count(tmp_path: Path) -> None:
    local = "mqtt://127.0.0.1:1883"
    assert code_of(tmp_path, start(None), broker=local) == "app-unsigned"
    assert code_of(tmp_path, start(None), broker=local, app_signers="", app_min_version="2") == "app-too-old"
    assert code_of(tmp_path, start(None, version="x"), broker=local, app_signers="", app_min_version="2") == (
        "app-malformed"
    )


@pytest.mark.parametrize(
    "settings", [{"app_signers": "ed25519:AAAA"}, {"app_signers": "x"}, {"app_min_version": "newest"}], ids=str
)
def test_a_rule_that_cannot_be_kept_is_reported_at_the_start(tmp_path: Path, settings: dict[str, str]) -> None:
    with pytest.raises(ClientConfigError, match=next(iter(settings))):
        code_of(tmp_path, start(), **settings)


def test_a_refusal_is_the_answer_to_a_start_again_and_again_and_nothing_is_done(tmp_path: Path) -> None:
    policy = AppPolicy(ClientSettings(app="delivered", app_signers=SIGNER.public_key), ME, tmp_path)
    trigger = start(STRANGER)
    first = apply(Client(identity=ME), trigger, app_refusal=policy.refusal(trigger))
    again = apply(first.client, trigger)
    for step in (first, again):
        assert step.action is None
        assert step.client.run is None
        last = step.client.facts.last_trigger
        assert last is not None
        assert (last.answer, last.reason_code) == (Answer.REJECTED, "app-unknown-signer")


def test_a_busy_device_reports_that_it_is_busy_whatever_the_app(tmp_path: Path) -> None:
    policy = AppPolicy(ClientSettings(app="delivered", app_signers=SIGNER.public_key), ME, tmp_path)
    busy = apply(Client(identity=ME), start()).client
    other = start(STRANGER).model_copy(update={"run_id": "r2"})
    last = apply(busy, other, app_refusal=policy.refusal(other)).client.facts.last_trigger
    assert last is not None
    assert last.reason_code is ReasonCode.BUSY


def test_app_and_settings_of_the_run_reach_the_training() -> None:
    trigger = start().model_copy(update={"run_config": {"lr": 0.5}})
    action = apply(Client(identity=replace(ME)), trigger).action
    assert isinstance(action, RunStart)
    assert (action.app, action.run_config) == (trigger.app, {"lr": 0.5})


def test_a_device_that_waits_for_its_first_start_has_no_cryptography_in_memory(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from fedops_mqtt.core.client import Identity
from fedops_mqtt.device.app_policy import AppPolicy
from fedops_mqtt.runtime.settings import ClientSettings
identity = Identity(task_id="digits", client_mac="02:00:00:00:00:01", client_name="d", instance="i")
AppPolicy(ClientSettings(app="delivered", app_signers={SIGNER.public_key!r}), identity, Path({str(tmp_path)!r}))
assert "fedops_mqtt.apps.signing" in sys.modules
assert not {{"cryptography", "flwr"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_approvals_that_cannot_be_read_are_a_refusal_with_the_reason(tmp_path: Path) -> None:
    wanted = {"app": "delivered-after-approval", "app_signers": SIGNER.public_key}
    policy = AppPolicy(ClientSettings.model_validate(wanted), ME, tmp_path)
    AppLibrary(app_folder(tmp_path)).approve(DIGEST)
    assert policy.refusal(start()) is None
    app_folder(tmp_path).chmod(0o700)
    os.seteuid(12345)
    try:
        refusal = policy.refusal(start())
    finally:
        os.seteuid(0)
    assert refusal is not None
    assert refusal.answer is Answer.REJECTED
    assert "approvals cannot be read: [Errno 13]" in (refusal.reason or "")
