"""A manager's HTTP API for Python programs: `ManagerClient`, and `AsyncManagerClient` for an event loop.

Answers are the API's own models (`manager.api.models`); what the manager refuses is an error with its sentence.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from fedops_mqtt.bus.address import without_password
from fedops_mqtt.manager.api.models import (
    ClientPage,
    ClientRecord,
    Forgotten,
    Health,
    ModelPage,
    ModelRecord,
    RunPage,
    RunRecord,
    RunRequest,
    RunSummary,
    StopRequest,
    TaskPage,
    TaskRecord,
)
from fedops_mqtt.runtime.http_access import FILE_TYPE

ROOT = "/api/v1"
PAGE = 500
"""Records asked for at once."""
_POLL_S = 0.5
"""How often `wait` asks; a run's end is a matter of seconds."""

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class ManagerClientError(Exception):
    """A manager could not be asked, or did not do what it was asked."""


class ManagerUrlError(ManagerClientError, ValueError):
    """The URL is none, or what answers there is not a manager."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        self.problem = problem
        super().__init__(f"{without_password(url)!r} is no manager's URL ({problem}); http://host:port is one")


class ManagerUnreachableError(ManagerClientError, ConnectionError):
    """Nobody answers there, or not in time."""

    def __init__(self, url: str, problem: str, *, is_timeout: bool = False) -> None:
        self.url = url
        self.problem = problem
        self.is_timeout = is_timeout
        super().__init__(f"no answer from the manager at {without_password(url)}: {problem}")


class ManagerRefusedError(ManagerClientError):
    """The manager's own refusal; `status` is that of HTTP (401 and 403: the token or certificate is not enough)."""

    def __init__(self, status: int, problem: str) -> None:
        self.status = status
        self.problem = problem
        super().__init__(problem)

    @property
    def is_permission(self) -> bool:
        """Tell whether the caller's credentials are what is wrong."""
        return self.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call(Generic[Answer]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[Any], Answer]
    query: dict[str, Any] | None = None
    body: dict[str, Any] | bytes | None = None
    """Bytes are a zip, else it is JSON."""
    is_text: bool = False


def _call(method: str, path: str, answer: type[Answer], **given: Any) -> _Call[Answer]:
    return _Call(method=method, path=path, read=TypeAdapter(answer).validate_python, **given)


def _page(path: str, page: type[Answer], offset: int, **query: Any) -> _Call[Answer]:
    return _call("GET", path, page, query={"offset": offset, "limit": PAGE, **query})


def _start(task_id: str, options: dict[str, Any]) -> _Call[RunRecord]:
    request = RunRequest(task_id=task_id, **options)
    return _call("POST", "/runs", RunRecord, body=request.model_dump(mode="json", exclude_none=True))


def _stop(run_id: str, reason: str | None) -> _Call[RunRecord]:
    request = StopRequest() if reason is None else StopRequest(reason=reason)
    return _call("POST", f"/runs/{quote(run_id)}/stop", RunRecord, body=request.model_dump())


def _run(run_id: str) -> _Call[RunRecord]:
    return _call("GET", f"/runs/{quote(run_id)}", RunRecord)


def _forget(client_mac: str, is_forced: bool) -> _Call[Forgotten]:
    return _call("DELETE", f"/clients/{quote(client_mac)}", Forgotten, query={"force": is_forced or None})


class _Connection:
    """What both clients share: the address, the credentials, and how an answer is read."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        # trust_env off: a proxy of the environment has no business between a program and its manager.
        self._options: dict[str, Any] = {
            "base_url": self.url + ROOT,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "timeout": timeout_s,
            "trust_env": False,
            "verify": _make_tls(ca_file, cert_file, key_file),
        }

    def _request(self, call: _Call[Any]) -> dict[str, Any]:
        query = {name: value for name, value in (call.query or {}).items() if value is not None}
        request = {"method": call.method, "url": call.path, "params": query}
        if isinstance(call.body, bytes):
            return {**request, "content": call.body, "headers": {"Content-Type": FILE_TYPE.decode()}}
        return {**request, "json": call.body}

    def _read(self, call: _Call[Answer], answer: httpx.Response) -> Answer:
        if answer.is_success and call.is_text:
            return call.read(answer.text)
        try:
            content = answer.json() if answer.content else None
            if answer.is_success:
                return call.read(content)
        except ValidationError as error:
            raise ManagerUrlError(self.url, f"it answers in another form: {error.errors()[0]['msg']}") from error
        except ValueError as error:
            raise ManagerUrlError(self.url, "what answers there is not a manager") from error
        raise ManagerRefusedError(answer.status_code, _problem(content) or f"HTTP status {answer.status_code}")

    def _failure(self, error: httpx.HTTPError | httpx.InvalidURL | TimeoutError) -> ManagerClientError:
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return ManagerUrlError(self.url, "it is not of this form")
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return ManagerUnreachableError(self.url, f"none within {self.timeout_s:g} s", is_timeout=True)
        return ManagerUnreachableError(self.url, str(error) or type(error).__name__)


class ManagerClient(_Connection):
    """One manager, for programs without an event loop; a context manager.

    `url` is `http://host:port`; `token` is the manager's; `ca_file`, `cert_file` and `key_file` are for HTTPS. Every
    call takes at most `timeout_s` seconds.

    Raises (every method):
        ManagerUnreachableError: nobody answers, or not in time.
        ManagerRefusedError: the manager says no, and why.
        ManagerUrlError: the URL is none, or there is no manager at it.
    """

    def __enter__(self) -> Self:
        try:
            self._http = httpx.Client(**self._options)
        except httpx.InvalidURL as error:
            raise self._failure(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def health(self) -> Health:
        """Return how the manager is."""
        return self._ask(_call("GET", "/health", Health))

    def clients(self, *, task_id: str | None = None, presence: str | None = None) -> list[ClientRecord]:
        """Return the clients that it knows."""
        return list(self._every(lambda at: _page("/clients", ClientPage, at, task_id=task_id, presence=presence)))

    def tasks(self) -> list[TaskRecord]:
        """Return the tasks that it can run."""
        return list(self._every(lambda at: _page("/tasks", TaskPage, at)))

    def runs(self, *, task_id: str | None = None) -> list[RunSummary]:
        """Return the runs that it remembers, the newest first."""
        return list(self._every(lambda at: _page("/runs", RunPage, at, task_id=task_id)))

    def run(self, run_id: str) -> RunRecord:
        """Return one run and its clients."""
        return self._ask(_run(run_id))

    def models(self, task_id: str) -> list[ModelRecord]:
        """Return a task's stored global models."""
        return self._ask(_call("GET", f"/tasks/{quote(task_id)}/models", ModelPage)).items

    def start(self, task_id: str, **options: Any) -> RunRecord:
        """Start a run; `options` are `RunRequest`'s: `num_rounds`, `min_clients`, `clients`, `join`, `run_config`."""
        return self._ask(_start(task_id, options))

    def stop(self, run_id: str, *, reason: str | None = None) -> RunRecord:
        """Ask for a run's end; `wait` returns when it has ended."""
        return self._ask(_stop(run_id, reason))

    def wait(self, run_id: str, *, timeout_s: float | None = None) -> RunRecord:
        """Return a run when it has ended.

        Raises:
            TimeoutError: it has not ended within `timeout_s`.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while (run := self.run(run_id)).outcome is None:
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"run {run_id} has not ended within {timeout_s:g} s")
            time.sleep(_POLL_S)
        return run

    def forget(self, client_mac: str, *, is_forced: bool = False) -> Forgotten:
        """Clear what the broker retains of a client that is away for good; `is_forced`: also of one that seems here."""
        return self._ask(_forget(client_mac, is_forced))

    def request(self, method: str, path: str, *, body: Any = None, is_text: bool = False, **query: Any) -> Any:
        """Call an endpoint below `/api/v1` that has no method here, and return its JSON or text; bytes go as a zip."""
        return self._ask(_Call(method=method, path=path, read=_as_it_is, query=query, body=body, is_text=is_text))

    def _ask(self, call: _Call[Answer]) -> Answer:
        try:
            answer = self._http.request(**self._request(call))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failure(error) from error
        return self._read(call, answer)

    def _every(self, page: Callable[[int], _Call[Any]]) -> Iterator[Any]:
        offset = 0
        while True:
            found = self._ask(page(offset))
            yield from found.items
            offset += len(found.items)
            if not found.items or offset >= found.total:
                return


class AsyncManagerClient(_Connection):
    """One manager, for programs with an event loop; an async context manager.

    The arguments, the methods and what they raise are those of `ManagerClient`; each method is awaited.
    """

    async def __aenter__(self) -> Self:
        try:
            self._http = httpx.AsyncClient(**self._options)
        except httpx.InvalidURL as error:
            raise self._failure(error) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def health(self) -> Health:
        """Return how the manager is."""
        return await self._ask(_call("GET", "/health", Health))

    async def clients(self, *, task_id: str | None = None, presence: str | None = None) -> list[ClientRecord]:
        """Return the clients that it knows."""
        return [
            item
            async for item in self._every(
                lambda at: _page("/clients", ClientPage, at, task_id=task_id, presence=presence)
            )
        ]

    async def tasks(self) -> list[TaskRecord]:
        """Return the tasks that it can run."""
        return [item async for item in self._every(lambda at: _page("/tasks", TaskPage, at))]

    async def runs(self, *, task_id: str | None = None) -> list[RunSummary]:
        """Return the runs that it remembers, the newest first."""
        return [item async for item in self._every(lambda at: _page("/runs", RunPage, at, task_id=task_id))]

    async def run(self, run_id: str) -> RunRecord:
        """Return one run and its clients."""
        return await self._ask(_run(run_id))

    async def models(self, task_id: str) -> list[ModelRecord]:
        """Return a task's stored global models."""
        return (await self._ask(_call("GET", f"/tasks/{quote(task_id)}/models", ModelPage))).items

    async def start(self, task_id: str, **options: Any) -> RunRecord:
        """Start a run; `options` are `RunRequest`'s: `num_rounds`, `min_clients`, `clients`, `join`, `run_config`."""
        return await self._ask(_start(task_id, options))

    async def stop(self, run_id: str, *, reason: str | None = None) -> RunRecord:
        """Ask for a run's end; `wait` returns when it has ended."""
        return await self._ask(_stop(run_id, reason))

    async def wait(self, run_id: str, *, timeout_s: float | None = None) -> RunRecord:
        """Return a run when it has ended.

        Raises:
            TimeoutError: it has not ended within `timeout_s`.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while (run := await self.run(run_id)).outcome is None:
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"run {run_id} has not ended within {timeout_s:g} s")
            await asyncio.sleep(_POLL_S)
        return run

    async def forget(self, client_mac: str, *, is_forced: bool = False) -> Forgotten:
        """Clear what the broker retains of a client that is away for good; `is_forced`: also of one that seems here."""
        return await self._ask(_forget(client_mac, is_forced))

    async def request(self, method: str, path: str, *, body: Any = None, is_text: bool = False, **query: Any) -> Any:
        """Call an endpoint below `/api/v1` that has no method here, and return its JSON or text; bytes go as a zip."""
        return await self._ask(_Call(method=method, path=path, read=_as_it_is, query=query, body=body, is_text=is_text))

    async def _ask(self, call: _Call[Answer]) -> Answer:
        try:
            async with asyncio.timeout(self.timeout_s):  # httpx limits each part of an answer, not all of it
                answer = await self._http.request(**self._request(call))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise self._failure(error) from error
        return self._read(call, answer)

    async def _every(self, page: Callable[[int], _Call[Any]]) -> AsyncIterator[Any]:
        offset = 0
        while True:
            found = await self._ask(page(offset))
            for item in found.items:
                yield item
            offset += len(found.items)
            if not found.items or offset >= found.total:
                return


def _make_tls(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext | bool:
    """Return how HTTPS is checked: by the given CA, with the given certificate.

    Raises:
        OSError: a file cannot be read, or is none of its kind.
    """
    if ca_file is None and cert_file is None:
        return True
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    return context


def _as_it_is(content: Any) -> Any:
    return content


def _problem(content: Any) -> str | None:
    """Return the sentence in a problem document (RFC 9457)."""
    detail = content.get("detail") or content.get("title") if isinstance(content, dict) else None
    return str(detail) if detail else None
