"""The manager's HTTP API as the verbs use it: a success is JSON, anything else ends the verb with advice."""

import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from fedops_mqtt.bus.address import without_password
from fedops_mqtt.cli.fatal import FatalError
from fedops_mqtt.runtime.exit_codes import ExitCode
from fedops_mqtt.runtime.settings import CliSettings

_ROOT = "/api/v1"
_PAGE = 500
"""Records asked for at once."""
_REFUSED_US = (401, 403)

Record = dict[str, Any]


def _make_tls(settings: CliSettings) -> ssl.SSLContext | bool:
    """Return how HTTPS is checked: by the fleet's CA where it is set, with our certificate where it is."""
    if settings.manager_ca_file is None and settings.manager_cert_file is None:
        return True
    try:
        context = ssl.create_default_context(cafile=settings.manager_ca_file)
        if settings.manager_cert_file is not None:
            context.load_cert_chain(settings.manager_cert_file, settings.manager_key_file)
    except OSError as error:
        raise FatalError(f"manager_ca_file, manager_cert_file or its key: {error}", ExitCode.CONFIG) from error
    return context


class ManagerApi:
    """A connection to one manager, as a context manager."""

    def __init__(self, settings: CliSettings) -> None:
        token = settings.manager_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._url = settings.manager.rstrip("/")
        self._timeout_s = settings.request_timeout_s
        # trust_env off: a proxy of the environment has no business between this machine and its manager.
        try:
            self._client = httpx.Client(
                base_url=self._url + _ROOT,
                headers=headers,
                timeout=self._timeout_s,
                trust_env=False,
                verify=_make_tls(settings),
            )
        except httpx.InvalidURL as error:
            raise _wrong_url(self._url, "it is malformed") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        """Return what stands at a path. Raises: FatalError."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", path, params=given)

    def get_text(self, path: str) -> str:
        """Return what stands at a path, as text. Raises: FatalError."""
        answer = self._ask("GET", path)
        return answer.text if answer.is_success else str(_read(answer, self._url))

    def get_all(self, name: str, **query: Any) -> list[Record]:
        """Return every record of a list, page after page. Raises: FatalError."""
        records: list[Record] = []
        while True:
            page = self.get(f"/{name}", offset=len(records), limit=_PAGE, **query)
            records += page["items"]
            if not page["items"] or len(records) >= page["total"]:
                return records

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for something to be done and return the answer. Raises: FatalError."""
        return self._call("POST", path, json=body or {})

    def delete(self, path: str, **query: Any) -> Any:
        """Ask for something to be removed. Raises: FatalError."""
        return self._call("DELETE", path, params=query)

    def _call(self, method: str, path: str, **given: Any) -> Any:
        return _read(self._ask(method, path, **given), self._url)

    def _ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **given)
        except httpx.TimeoutException as error:
            problem = f"the manager at {without_password(self._url)} did not answer within {self._timeout_s:g} s"
            raise FatalError(f"{problem}. Is it busy? --request-timeout-s waits longer.", _UNAVAILABLE) from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise _wrong_url(self._url, "it is not of this form") from error
        except httpx.TransportError as error:
            advice = "`fedops-mqtt manager` starts one; --manager says where another one is"
            raise FatalError(
                f"no manager at {without_password(self._url)} ({error}): {advice}.", _UNAVAILABLE
            ) from error


def _read(answer: httpx.Response, url: str) -> Any:
    try:
        content = answer.json() if answer.content else None
    except ValueError as error:
        raise _wrong_url(url, "what answers there is not a manager") from error
    if answer.is_success:
        return content
    problem = _problem(content) or f"HTTP status {answer.status_code}"
    if answer.status_code in _REFUSED_US:
        advice = "set FEDOPS_MQTT_MANAGER_TOKEN to the manager's token"
        raise FatalError(f"the manager refuses us: {problem}; {advice}.", ExitCode.NO_PERMISSION)
    raise FatalError(f"the manager says no: {problem}", ExitCode.FAILED)


def _problem(content: Any) -> str | None:
    """Return the sentence in a problem document (RFC 9457)."""
    detail = content.get("detail") or content.get("title") if isinstance(content, dict) else None
    return str(detail) if detail else None


def _wrong_url(url: str, problem: str) -> FatalError:
    return FatalError(
        f"{without_password(url)!r} is no manager's URL ({problem}). --manager wants http://host:port.", ExitCode.CONFIG
    )


_UNAVAILABLE = ExitCode.UNAVAILABLE
