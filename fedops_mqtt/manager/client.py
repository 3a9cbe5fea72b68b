"""A manager's HTTP API for Python programs: `ManagerClient`, and `AsyncManagerClient` for an event loop.

Answers are the API's own models (`manager.api.models`); what the manager refuses is an error with its sentence.
Each method is written once, in `_Methods`, as the requests that it makes.
"""

import asyncio
import inspect
import json
import logging
import ssl
import time
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from functools import update_wrapper
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar, cast, get_args, overload
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from fedops_mqtt.bus.address import without_password
from fedops_mqtt.manager.api.app_models import AppDetails, AppPage, AppRecord, RollbackRequest
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
from fedops_mqtt.protocol import clip
from fedops_mqtt.runtime.bearer import bearer_header
from fedops_mqtt.runtime.http_access import FILE_TYPE

if TYPE_CHECKING:
    from fedops_mqtt.apps import AppSignature

logger = logging.getLogger(__name__)

ROOT = "/api/v1"
PAGE = 500
"""Records requested at once."""
MAX_PAGES = 400
"""Of one list: 200,000 records. What answers may claim any number of them."""
MAX_JSON_BYTES = 64 * 1024 * 1024
"""An answer in JSON; the record of a run with 20,000 clients is 6 MB."""
MAX_OBJECT_KEYS = 100_000
"""Of an object in an answer; each that does not fit into a record costs a kilobyte."""
MAX_FILE_BYTES = 1024 * 1024 * 1024
"""An answer that is a file: a table of a run's history, or an app."""
MAX_PROBLEM_CHARS = 4000
"""Of a refusal: it is printed, logged and shown on the page."""
_POLL_S = 0.5
"""Between two requests of `wait`; a run's end is a matter of seconds."""

P = ParamSpec("P")
Answer = TypeVar("Answer")


class ManagerClientError(Exception):
    """A manager did not answer, or did not do what was requested."""


class ManagerUrlError(ManagerClientError, ValueError):
    """The URL is invalid, or what answers there is not a manager."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        self.problem = problem
        super().__init__(f"{without_password(url)!r} is no manager's URL ({problem}); http://host:port is one")


class ManagerUnreachableError(ManagerClientError, ConnectionError):
    """No answer from the manager, or not in time."""

    def __init__(self, url: str, problem: str, *, is_timeout: bool = False) -> None:
        self.url = url
        self.problem = problem
        self.is_timeout = is_timeout
        super().__init__(f"no answer from the manager at {without_password(url)}: {problem}")


class ManagerRefusedError(ManagerClientError):
    """The manager refused; `status` is that of HTTP (401 and 403: the token or certificate is not sufficient)."""

    def __init__(self, status: int, problem: str) -> None:
        self.status = status
        self.problem = problem
        super().__init__(problem)

    @property
    def is_permission(self) -> bool:
        """True when the caller's credentials were refused."""
        return self.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[Any], Any] = lambda content: content
    query: dict[str, Any] | None = None
    body: dict[str, Any] | bytes | None = None
    """Bytes are a zip, else it is JSON."""
    form: Literal["json", "text", "bytes"] = "json"
    """What `read` gets of a successful answer."""


Steps = Generator[_Call | float, Any, Answer]
"""Yields a method's requests, and pauses between them, s; is sent each answer, and returns the method's own."""


class _Method(Generic[P, Answer]):
    """A method of both clients: it returns its answer in `ManagerClient`, and is awaited in `AsyncManagerClient`."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[Answer]]) -> None:
        self._steps = steps
        steps_of, answer = inspect.signature(steps), get_args(steps.__annotations__["return"])[-1]
        self._signature = steps_of.replace(return_annotation=answer)

    @overload
    def __get__(self, client: None, owner: type[Any]) -> Callable[Concatenate[Any, P], Any]: ...
    @overload
    def __get__(self, client: "ManagerClient", owner: type[Any]) -> Callable[P, Answer]: ...
    @overload
    def __get__(self, client: "AsyncManagerClient", owner: type[Any]) -> Callable[P, Coroutine[Any, Any, Answer]]: ...

    def __get__(self, client: "ManagerClient | AsyncManagerClient | None", owner: type[Any]) -> Callable[..., Any]:
        def method(client: "ManagerClient | AsyncManagerClient", *args: P.args, **kwargs: P.kwargs) -> Any:
            return client._follow(self._steps(client, *args, **kwargs))

        update_wrapper(method, self._steps)
        method.__signature__ = self._signature  # type: ignore[attr-defined]
        return method if client is None else method.__get__(client)


def _one(method: str, path: str, form: type[Answer], **given: Any) -> Steps[Answer]:
    answer: Answer = yield _Call(method=method, path=path, read=TypeAdapter(form).validate_python, **given)
    return answer


def _all(path: str, page: type[ClientPage | TaskPage | RunPage], **query: Any) -> Steps[list[Any]]:
    """Request a list page after page; one of more than `MAX_PAGES` is cut, with a warning in the log."""
    items: list[Any] = []
    before: list[Any] = []
    for _ in range(MAX_PAGES):
        found = yield from _one("GET", path, page, query={"offset": len(items), "limit": PAGE, **query})
        if found.items == before:  # none, or the same again
            return items
        before = found.items
        items += before
        if len(items) >= found.total:
            return items
    logger.warning("a manager's list is cut", extra={"path": path, "num_items": len(items), "claimed": found.total})
    return items


def _bounded(members: dict[str, Any]) -> dict[str, Any]:
    if len(members) > MAX_OBJECT_KEYS:
        raise ValueError(f"an object has {len(members):,} members")
    return members


def _part(value: str) -> str:
    return quote(value, safe="")


class _Methods:
    """The methods of both clients."""

    @_Method
    def health(self) -> Steps[Health]:
        """Return how the manager is."""
        return _one("GET", "/health", Health)

    @_Method
    def clients(self, *, task_id: str | None = None, presence: str | None = None) -> Steps[list[ClientRecord]]:
        """Return the clients that it knows."""
        return _all("/clients", ClientPage, task_id=task_id, presence=presence)

    @_Method
    def tasks(self) -> Steps[list[TaskRecord]]:
        """Return the tasks that it can run."""
        return _all("/tasks", TaskPage)

    @_Method
    def runs(self, *, task_id: str | None = None) -> Steps[list[RunSummary]]:
        """Return the runs in its journal, the newest first."""
        return _all("/runs", RunPage, task_id=task_id)

    @_Method
    def run(self, run_id: str) -> Steps[RunRecord]:
        """Return one run and its clients."""
        return _one("GET", f"/runs/{_part(run_id)}", RunRecord)

    @_Method
    def models(self, task_id: str) -> Steps[list[ModelRecord]]:
        """Return a task's stored global models."""
        page = yield from _one("GET", f"/tasks/{_part(task_id)}/models", ModelPage)
        return page.items

    @_Method
    def start(self, /, task_id: str, **options: Any) -> Steps[RunRecord]:
        """Start a run; `options` are `RunRequest`'s: `num_rounds`, `min_clients`, `clients`, `join`, `run_config`."""
        request = RunRequest(task_id=task_id, **options)
        return _one("POST", "/runs", RunRecord, body=request.model_dump(mode="json", exclude_none=True))

    @_Method
    def stop(self, run_id: str, *, reason: str | None = None) -> Steps[RunRecord]:
        """Request a run's end; `wait` returns when it has ended."""
        request = StopRequest() if reason is None else StopRequest(reason=reason)
        return _one("POST", f"/runs/{_part(run_id)}/stop", RunRecord, body=request.model_dump())

    @_Method
    def wait(self, run_id: str, *, timeout_s: float | None = None) -> Steps[RunRecord]:
        """Return a run when it has ended.

        Raises:
            TimeoutError: it has not ended within `timeout_s`.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            run = yield from _one("GET", f"/runs/{_part(run_id)}", RunRecord)
            if run.outcome is not None:
                return run
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"run {run_id} has not ended within {timeout_s:g} s")
            yield _POLL_S

    @_Method
    def forget(self, client_mac: str, *, is_forced: bool = False) -> Steps[Forgotten]:
        """Clear the retained status of a client that is away for good; `is_forced`: also of one that is online."""
        query = {"force": is_forced or None}
        return _one("DELETE", f"/clients/{_part(client_mac)}", Forgotten, query=query)

    @_Method
    def apps(self, task_id: str) -> Steps[list[AppRecord]]:
        """Return the versions of a task's app, newest first."""
        page = yield from _one("GET", f"/tasks/{_part(task_id)}/apps", AppPage)
        return page.items

    @_Method
    def app(self, digest: str) -> Steps[AppDetails]:
        """Return a published app: of which tasks, its files, and the runs that trained with it."""
        return _one("GET", f"/apps/{_part(digest)}", AppDetails)

    @_Method
    def publish_app(self, task_id: str, bundle: bytes, *, signature: "AppSignature | None" = None) -> Steps[AppRecord]:
        """Make a bundle, as `flwr build` makes it, the current version of a task's app; `AppSigner` signs it."""
        query = signature.model_dump() if signature is not None else None
        return _one("POST", f"/tasks/{_part(task_id)}/apps", AppRecord, body=bundle, query=query)

    @_Method
    def roll_back_app(self, task_id: str, version: str | None = None) -> Steps[AppRecord]:
        """Make an earlier version (or digest) of a task's app current again; None: that before the current one."""
        body = RollbackRequest(version=version).model_dump()
        return _one("POST", f"/tasks/{_part(task_id)}/apps/rollback", AppRecord, body=body)

    @_Method
    def withdraw_app(self, task_id: str) -> Steps[AppRecord]:
        """Leave a task without a current app."""
        return _one("DELETE", f"/tasks/{_part(task_id)}/apps/current", AppRecord)

    @_Method
    def download_app(self, digest: str) -> Steps[bytes]:
        """Return the bundle of a published app."""
        bundle: bytes = yield _Call(method="GET", path=f"/apps/{_part(digest)}/bundle", form="bytes")
        return bundle

    @_Method
    def request(
        self, /, method: str, path: str, *, body: Any = None, is_text: bool = False, **query: Any
    ) -> Steps[Any]:
        """Call an endpoint below `/api/v1` that has no method here, and return its JSON or text; bytes go as a zip."""
        form: Literal["json", "text"] = "text" if is_text else "json"
        return (yield _Call(method=method, path=path, query=query, body=body, form=form))


class _Connection(_Methods):
    """What both clients share: the methods, the address, the credentials, and how an answer is read."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        timeout_s: float = 10.0,
        max_json_bytes: int = MAX_JSON_BYTES,
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._max_bytes = {"json": max_json_bytes, "text": MAX_FILE_BYTES, "bytes": MAX_FILE_BYTES}
        # trust_env off: no proxy of the environment between a program and its manager.
        self._options: dict[str, Any] = {
            "base_url": self.url + ROOT,
            "headers": bearer_header(token),
            "timeout": timeout_s,
            "trust_env": False,
            "verify": _make_tls(ca_file, cert_file, key_file),
        }

    def _request(self, call: _Call) -> dict[str, Any]:
        query = {name: value for name, value in (call.query or {}).items() if value is not None}
        # Uncompressed: a kilobyte of layered gzip is a gigabyte before its size can be checked.
        headers = {"Accept-Encoding": "identity"}
        request = {"method": call.method, "url": call.path, "params": query, "headers": headers}
        if isinstance(call.body, bytes):
            headers["Content-Type"] = FILE_TYPE.decode()
            return {**request, "content": call.body}
        return {**request, "json": call.body}

    def _check(self, call: _Call, answer: httpx.Response, num_bytes: int = 0) -> None:
        """Raise `ManagerUrlError` if an answer, of which so much has arrived, cannot be a manager's."""
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise ManagerUrlError(self.url, "it answers compressed, which was not requested")
        limit = self._max_bytes[call.form if answer.is_success else "json"]
        if num_bytes > limit:
            raise ManagerUrlError(self.url, f"its answer is longer than {limit:,} bytes")

    def _read(self, call: _Call, answer: httpx.Response, body: bytes) -> Any:
        if answer.is_success and call.form != "json":
            return call.read(body.decode(errors="replace") if call.form == "text" else body)
        try:
            content = json.loads(body, object_hook=_bounded) if body else None
            if answer.is_success:
                return call.read(content)
            # A problem document (RFC 9457).
            problem = content.get("detail") or content.get("title") if isinstance(content, dict) else None
            sentence = str(problem or f"HTTP status {answer.status_code}")
        except ValidationError as error:
            raise ManagerUrlError(self.url, f"it answers in another form: {error.errors()[0]['msg']}") from error
        except (ValueError, RecursionError) as error:  # the latter of brackets within brackets
            raise ManagerUrlError(self.url, "what answers there is not a manager") from error
        raise ManagerRefusedError(answer.status_code, clip(sentence, MAX_PROBLEM_CHARS))

    def _failure(self, error: httpx.HTTPError | httpx.InvalidURL | OSError) -> ManagerClientError:
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return ManagerUrlError(self.url, "it is not of this form")
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return ManagerUnreachableError(self.url, f"none within {self.timeout_s:g} s", is_timeout=True)
        return ManagerUnreachableError(self.url, str(error) or type(error).__name__)


class ManagerClient(_Connection):
    """One manager, for programs without an event loop; a context manager.

    `url` is `http://host:port`; `token` is the manager's; `ca_file`, `cert_file` and `key_file` are for HTTPS. Every
    request takes at most `timeout_s` seconds, and an answer has at most `max_json_bytes` (a file: `MAX_FILE_BYTES`).

    Raises (every method):
        ManagerUnreachableError: no answer, or not in time.
        ManagerRefusedError: the manager refused, with its reason.
        ManagerUrlError: the URL is invalid, or what answers there is no manager's.
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

    def _follow(self, steps: Steps[Answer]) -> Answer:
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return cast("Answer", end.value)
            if isinstance(step, _Call):
                answer = self._ask(step)
                continue
            answer = None
            time.sleep(step)

    def _ask(self, call: _Call) -> Any:
        body = bytearray()
        until = time.monotonic() + self.timeout_s
        try:
            with self._http.stream(**self._request(call)) as answer:
                self._check(call, answer)
                for part in answer.iter_raw():
                    body += part
                    self._check(call, answer, len(body))
                    if call.form == "json" and time.monotonic() > until:  # httpx limits each part of an answer
                        raise TimeoutError
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise self._failure(error) from error
        return self._read(call, answer, bytes(body))


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

    async def _follow(self, steps: Steps[Answer]) -> Answer:
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return cast("Answer", end.value)
            if isinstance(step, _Call):
                answer = await self._ask(step)
                continue
            answer = None
            await asyncio.sleep(step)

    async def _ask(self, call: _Call) -> Any:
        body = bytearray()
        try:
            async with (
                asyncio.timeout(self.timeout_s),  # httpx limits each part of an answer, not all of it
                self._http.stream(**self._request(call)) as answer,
            ):
                self._check(call, answer)
                async for part in answer.aiter_raw():
                    body += part
                    self._check(call, answer, len(body))
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise self._failure(error) from error
        return self._read(call, answer, bytes(body))


def _make_tls(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext | bool:
    """Return how HTTPS is checked: by the given CA, with the given certificate.

    Raises:
        OSError: a file cannot be read, or is not of its kind.
    """
    if ca_file is None and cert_file is None:
        return True
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    return context
