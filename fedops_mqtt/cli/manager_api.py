"""The manager's HTTP API as the verbs use it: a success is JSON, anything else ends the verb with advice."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from pydantic import BaseModel

from fedops_mqtt.bus.address import without_password
from fedops_mqtt.cli.output import FatalError
from fedops_mqtt.manager.client import (
    Answer,
    ManagerClient,
    ManagerClientError,
    ManagerRefusedError,
    ManagerUnreachableError,
    ManagerUrlError,
    Steps,
)
from fedops_mqtt.runtime.settings import CliSettings
from fedops_mqtt.runtime.systemd import ExitCode

Record = dict[str, Any]


class ManagerApi(ManagerClient):
    """A `ManagerClient` whose errors end the verb: every method raises `FatalError`.

    `site` is the name of its site, where there are several.
    """

    def __init__(self, settings: CliSettings, url: str, *, token: str | None, site: str | None = None) -> None:
        self._site = site
        with file_errors():
            super().__init__(url, token=token, **access_of(settings))

    def __enter__(self) -> Self:
        with advice():
            return super().__enter__()

    def _follow(self, steps: Steps[Answer]) -> Answer:
        with advice():
            return super()._follow(steps)

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON at a path."""
        return self.request("GET", path, **query)

    def with_site(self, record: Record) -> Record:
        """Return a record with its site's name first, where there are several sites."""
        return {"site": self._site, **record} if self._site is not None else record

    def with_site_column(self, table: str) -> str:
        """Return a CSV with the site as its first column, where there are several sites."""
        if self._site is None:
            return table
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\r\n")
        for number, row in enumerate(csv.reader(io.StringIO(table, newline=""))):
            writer.writerow([self._site if number else "site", *row])
        return written.getvalue()


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
            advice = "`fedops-mqtt manager` starts one; --manager takes the URL of another one"
            if error.is_timeout:
                advice = "is it busy? --request-timeout-s waits longer"
            problem = f"no manager at {without_password(error.url)} ({error.problem})"
            return FatalError(f"{problem}: {advice}.", ExitCode.UNAVAILABLE)
        case ManagerRefusedError() if error.is_permission:
            advice = "set FEDOPS_MQTT_MANAGER_TOKEN to the manager's token"
            return FatalError(f"the manager refuses us: {error.problem}; {advice}.", ExitCode.NO_PERMISSION)
        case ManagerRefusedError():
            return FatalError(f"the manager refused: {error.problem}", ExitCode.FAILED)
        case _:
            return FatalError(str(error), ExitCode.FAILED)
