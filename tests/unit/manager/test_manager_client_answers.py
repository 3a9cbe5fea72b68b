"""What a manager's client makes of answers that are none of a manager's."""

import gzip
import json
from collections.abc import Iterator
from typing import ClassVar

import pytest
from http_stand_in import Handler, serving
from pydantic import ValidationError

from fedops_mqtt import AsyncManagerClient, ManagerClient
from fedops_mqtt.manager import client
from fedops_mqtt.manager.api.models import ClientPage, TaskPage, TaskRecord
from fedops_mqtt.manager.client import ManagerRefusedError, ManagerUnreachableError, ManagerUrlError


class Odd(Handler):
    """Answers whatever the test has set."""

    answer: ClassVar[tuple[int, bytes]] = (200, b"")
    headers_too: ClassVar[dict[str, str]] = {}
    num_asked: ClassVar[int] = 0

    def do_GET(self) -> None:
        type(self).num_asked += 1
        status, body = self.answer
        self.give(status, body, **self.headers_too)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Odd, "headers_too", {})
    monkeypatch.setattr(Odd, "num_asked", 0)
    with serving(Odd) as address:
        yield f"http://{address}"


PROBLEM = json.dumps({"title": "Forbidden", "status": 403, "detail": "the token is not the manager's"}).encode()
ODD = [
    ((200, b"<html>"), ManagerUrlError, "not a manager"),
    ((200, b'{"status": "fine"}'), ManagerUrlError, "another form"),
    ((200, b""), ManagerUrlError, "another form"),
    ((200, b"\xff\xfe"), ManagerUrlError, "not a manager"),
    ((200, b"[" * 200_000), ManagerUrlError, "not a manager"),
    ((500, b"[" * 200_000), ManagerUrlError, "not a manager"),
    ((500, b'{"detail": ' + b"[" * 900 + b"]" * 900 + b"}"), (ManagerUrlError, ManagerRefusedError), r"manager|\["),
    ((200, b"{" + b",".join(b'"%x":0' % each for each in range(200_000)) + b"}"), ManagerUrlError, "not a manager"),
    ((500, b"[]"), ManagerRefusedError, "HTTP status 500"),
    ((403, PROBLEM), ManagerRefusedError, "the token is not the manager's"),
]


@pytest.mark.parametrize(("answer", "error", "fact"), ODD)
async def test_an_unexpected_answer_is_an_error_that_describes_it(
    url: str, answer: tuple[int, bytes], error: type[Exception], fact: str
) -> None:
    Odd.answer = answer
    with ManagerClient(url) as manager, pytest.raises(error, match=fact):
        manager.health()
    async with AsyncManagerClient(url) as manager:
        with pytest.raises(error, match=fact):
            await manager.health()


@pytest.mark.parametrize("url", ["http://", "ftp://host:1", "http://[::1", "host:8080", "http://\x00"])
def test_an_invalid_url_is_reported(url: str) -> None:
    with pytest.raises((ManagerUrlError, ManagerUnreachableError)), ManagerClient(url) as manager:
        manager.health()


def test_an_unreachable_manager_is_reported() -> None:
    with (
        ManagerClient("http://127.0.0.1:1") as manager,
        pytest.raises(ManagerUnreachableError, match=r"127\.0\.0\.1:1"),
    ):
        manager.runs()


TASK = {
    "task_id": "t", "is_launchable": True, "adopt": False, "num_rounds": 1, "min_clients": 1, "join": "open",
    "app_digest": None, "app_version": None, "active_run": None, "num_clients": 0,
}  # fmt: skip


async def test_a_list_that_claims_more_than_it_brings_is_not_asked_for_for_ever(url: str) -> None:
    Odd.answer = (200, json.dumps({"items": [TASK], "total": 10**9}).encode())
    with ManagerClient(url) as manager:
        assert {each.task_id for each in manager.tasks()} == {"t"}
    async with AsyncManagerClient(url) as manager:
        assert {each.task_id for each in await manager.tasks()} == {"t"}
    assert Odd.num_asked == 4  # once more each, to see that nothing new comes


def test_a_list_without_an_end_is_cut_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = client._all("/tasks", TaskPage)
    step, num_asked = next(steps), 0
    items: list[TaskRecord] = []
    while not items:
        num_asked += 1
        assert isinstance(step, client._Call)
        task = {**TASK, "task_id": f"t{num_asked}"}
        try:
            step = steps.send(step.read({"items": [task], "total": 10**9}))
        except StopIteration as end:
            items = end.value
    assert num_asked == client.MAX_PAGES == len(items)
    assert "list is cut" in caplog.text


async def test_an_answer_that_is_too_long_is_refused(url: str) -> None:
    Odd.answer = (200, b'{"items": [], "more": "' + b"x" * 100_000 + b'", "total": 0}')
    with ManagerClient(url) as manager:
        assert manager.tasks() == []
    with ManagerClient(url, max_json_bytes=1000) as manager, pytest.raises(ManagerUrlError, match="1,000 bytes"):
        manager.tasks()
    async with AsyncManagerClient(url, max_json_bytes=1000) as manager:
        with pytest.raises(ManagerUrlError, match="1,000 bytes"):
            await manager.tasks()


async def test_a_compressed_answer_is_refused_before_anything_is_unpacked(url: str) -> None:
    Odd.answer = (200, gzip.compress(gzip.compress(b"[" * 100_000_000)))
    Odd.headers_too = {"content-encoding": "gzip, gzip"}
    with ManagerClient(url) as manager, pytest.raises(ManagerUrlError, match="compressed"):
        manager.tasks()
    async with AsyncManagerClient(url) as manager:
        with pytest.raises(ManagerUrlError, match="compressed"):
            await manager.tasks()


def test_a_long_refusal_is_clipped(url: str) -> None:
    Odd.answer = (500, json.dumps({"detail": "x" * 1_000_000}).encode())
    with ManagerClient(url) as manager, pytest.raises(ManagerRefusedError) as refused:
        manager.health()
    assert len(str(refused.value)) <= client.MAX_PROBLEM_CHARS


def test_only_the_first_fault_of_a_list_is_kept() -> None:
    """Fifteen for each of a million items were 17 GB."""
    with pytest.raises(ValidationError) as refused:
        ClientPage.model_validate({"items": [{}] * 1000, "total": 0})
    assert len({each["loc"][1] for each in refused.value.errors()}) == 1
