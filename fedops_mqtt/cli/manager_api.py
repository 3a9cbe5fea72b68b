"""The manager's HTTP API as the verbs use it: a success is JSON, anything else ends the verb with advice."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from fedops_mqtt.bus.address import without_password
from fedops_mqtt.cli.output import FatalError
from fedops_mqtt.manager.client import (
    PAGE,
    ManagerClient,
    ManagerRefusedError,
    ManagerUnreachableError,
    ManagerUrlError,
)
from fedops_mqtt.runtime.settings import CliSettings
from fedops_mqtt.runtime.systemd import ExitCode

Record = dict[str, Any]


class ManagerApi:
    """A `ManagerClient` whose errors end the verb; a context manager."""

    def __init__(self, settings: CliSettings) -> None:
        token = settings.manager_token
        try:
            self._client = ManagerClient(
                settings.manager,
                token=token.get_secret_value() if token else None,
                ca_file=settings.manager_ca_file,
                cert_file=settings.manager_cert_file,
                key_file=settings.manager_key_file,
                timeout_s=settings.request_timeout_s,
            )
        except OSError as error:
            raise FatalError(f"manager_ca_file, manager_cert_file or its key: {error}", ExitCode.CONFIG) from error

    def __enter__(self) -> Self:
        with _advice():
            self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.__exit__(kind, error, traceback)

    def get(self, path: str, **query: Any) -> Any:
        """Return what stands at a path. Raises: FatalError."""
        with _advice():
            return self._client.request("GET", path, **query)

    def get_text(self, path: str) -> str:
        """Return what stands at a path, as text. Raises: FatalError."""
        with _advice():
            return str(self._client.request("GET", path, is_text=True))

    def get_all(self, name: str, **query: Any) -> list[Record]:
        """Return every record of a list, page after page. Raises: FatalError."""
        records: list[Record] = []
        while True:
            page = self.get(f"/{name}", offset=len(records), limit=PAGE, **query)
            records += page["items"]
            if not page["items"] or len(records) >= page["total"]:
                return records

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for something to be done and return the answer. Raises: FatalError."""
        with _advice():
            return self._client.request("POST", path, body=dict(body or {}))

    def upload(self, path: str, data: bytes, **query: Any) -> Any:
        """Send a zip and return the answer. Raises: FatalError."""
        with _advice():
            return self._client.request("POST", path, body=data, **query)

    def delete(self, path: str, **query: Any) -> Any:
        """Ask for something to be removed. Raises: FatalError."""
        with _advice():
            return self._client.request("DELETE", path, **query)


@contextmanager
def _advice() -> Iterator[None]:
    """Turn the client's errors into a sentence that says what to do, and the exit status that fits."""
    try:
        yield
    except ManagerUrlError as error:
        problem = f"{without_password(error.url)!r} is no manager's URL ({error.problem})"
        raise FatalError(f"{problem}. --manager wants http://host:port.", ExitCode.CONFIG) from error
    except UnicodeEncodeError as error:
        raise FatalError(f"{str(error.object)[:200]!r} is not UTF-8", ExitCode.USAGE) from error
    except ManagerUnreachableError as error:
        advice = "`fedops-mqtt manager` starts one; --manager says where another one is"
        if error.is_timeout:
            advice = "is it busy? --request-timeout-s waits longer"
        problem = f"no manager at {without_password(error.url)} ({error.problem})"
        raise FatalError(f"{problem}: {advice}.", ExitCode.UNAVAILABLE) from error
    except ManagerRefusedError as error:
        if error.is_permission:
            advice = "set FEDOPS_MQTT_MANAGER_TOKEN to the manager's token"
            problem = f"the manager refuses us: {error.problem}; {advice}."
            raise FatalError(problem, ExitCode.NO_PERMISSION) from error
        raise FatalError(f"the manager says no: {error.problem}", ExitCode.FAILED) from error
