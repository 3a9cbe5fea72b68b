"""The manager's HTTP API as the verbs use it: a success is JSON, anything else ends the verb with advice."""

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from fedops_mqtt.bus.address import without_password
from fedops_mqtt.cli.output import FatalError
from fedops_mqtt.manager.client import (
    ManagerClient,
    ManagerClientError,
    ManagerRefusedError,
    ManagerUnreachableError,
    ManagerUrlError,
)
from fedops_mqtt.runtime.settings import CliSettings
from fedops_mqtt.runtime.systemd import ExitCode

if TYPE_CHECKING:
    from fedops_mqtt.apps import AppSignature

Record = dict[str, Any]


class ManagerApi:
    """A `ManagerClient` whose errors end the verb; a context manager.

    `site` is the name of its site, where there are several.
    """

    def __init__(self, settings: CliSettings, url: str, *, token: str | None, site: str | None = None) -> None:
        self.url = url
        self._site = site
        with file_errors():
            self._client = ManagerClient(url, token=token, **access_of(settings))

    def __enter__(self) -> Self:
        with advice():
            self._client.__enter__()
        return self

    def with_site(self, record: Record) -> Record:
        """Return a record with its site's name first, where there are several sites."""
        return {"site": self._site, **record} if self._site is not None else record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.__exit__(kind, error, traceback)

    def with_site_column(self, table: str) -> str:
        """Return a CSV with the site as its first column, where there are several sites."""
        if self._site is None:
            return table
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\r\n")
        for number, row in enumerate(csv.reader(io.StringIO(table, newline=""))):
            writer.writerow([self._site if number else "site", *row])
        return written.getvalue()

    def get(self, path: str, **query: Any) -> Any:
        """Return what stands at a path. Raises: FatalError."""
        with advice():
            return self._client.request("GET", path, **query)

    def get_text(self, path: str) -> str:
        """Return what stands at a path, as text. Raises: FatalError."""
        with advice():
            return str(self._client.request("GET", path, is_text=True))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for something to be done and return the answer. Raises: FatalError."""
        with advice():
            return self._client.request("POST", path, body=dict(body or {}))

    def publish_app(self, task_id: str, bundle: bytes, signature: "AppSignature | None") -> Record:
        """Make a bundle the current version of a task's app. Raises: FatalError."""
        with advice():
            return as_record(self._client.publish_app(task_id, bundle, signature=signature))

    def roll_back_app(self, task_id: str, version: str | None) -> Record:
        """Make an earlier version of a task's app current again. Raises: FatalError."""
        with advice():
            return as_record(self._client.roll_back_app(task_id, version))

    def withdraw_app(self, task_id: str) -> Record:
        """Leave a task without a current app. Raises: FatalError."""
        with advice():
            return as_record(self._client.withdraw_app(task_id))

    def delete(self, path: str, **query: Any) -> Any:
        """Ask for something to be removed. Raises: FatalError."""
        with advice():
            return self._client.request("DELETE", path, **query)


def as_record(answer: BaseModel) -> Record:
    """Return a typed answer as the API's JSON has it."""
    return answer.model_dump(mode="json")


def access_of(settings: CliSettings) -> dict[str, Any]:
    """Return how managers are reached, as the arguments of their clients; the tokens are apart."""
    return {
        "ca_file": settings.manager_ca_file,
        "cert_file": settings.manager_cert_file,
        "key_file": settings.manager_key_file,
        "timeout_s": settings.request_timeout_s,
    }


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn what is wrong with the TLS files into a sentence."""
    try:
        yield
    except OSError as error:
        raise FatalError(f"manager_ca_file, manager_cert_file or its key: {error}", ExitCode.CONFIG) from error


@contextmanager
def advice() -> Iterator[None]:
    """Turn the client's errors into a message with advice, and an exit status."""
    try:
        yield
    except ManagerClientError as error:
        raise explain_refusal(error) from error
    except UnicodeEncodeError as error:
        raise FatalError(f"{str(error.object)[:200]!r} is not UTF-8", ExitCode.USAGE) from error


def explain_refusal(error: ManagerClientError) -> FatalError:
    """Return the sentence and the exit status for a manager that could not be asked, or that refuses."""
    match error:
        case ManagerUrlError():
            problem = f"{without_password(error.url)!r} is no manager's URL ({error.problem})"
            return FatalError(f"{problem}. --manager wants http://host:port.", ExitCode.CONFIG)
        case ManagerUnreachableError():
            advice = "`fedops-mqtt manager` starts one; --manager says where another one is"
            if error.is_timeout:
                advice = "is it busy? --request-timeout-s waits longer"
            problem = f"no manager at {without_password(error.url)} ({error.problem})"
            return FatalError(f"{problem}: {advice}.", ExitCode.UNAVAILABLE)
        case ManagerRefusedError() if error.is_permission:
            advice = "set FEDOPS_MQTT_MANAGER_TOKEN to the manager's token"
            return FatalError(f"the manager refuses us: {error.problem}; {advice}.", ExitCode.NO_PERMISSION)
        case ManagerRefusedError():
            return FatalError(f"the manager says no: {error.problem}", ExitCode.FAILED)
        case _:
            return FatalError(str(error), ExitCode.FAILED)
