"""What verbs do with several managers: ask all of them, print each row with its site, or choose the one that is meant.

With one manager it is asked as ever, without a question before, and its rows have no site.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from fedops_mqtt.cli.manager_api import (
    ManagerApi,
    Record,
    access_of,
    advice,
    as_record,
    explain_refusal,
    file_errors,
)
from fedops_mqtt.cli.output import FatalError, print_records
from fedops_mqtt.manager.client import (
    AsyncManagerClient,
    ManagerClientError,
    ManagerRefusedError,
)
from fedops_mqtt.manager.sites import SiteAnswers, SiteChoiceError, SitesClient, read_sites
from fedops_mqtt.runtime.settings import CliSettings
from fedops_mqtt.runtime.site_addresses import SiteAddress
from fedops_mqtt.runtime.systemd import ExitCode


def sites_of(settings: CliSettings) -> tuple[SiteAddress, ...]:
    """Return the sites that the settings name: all, or the one of `--site`. Raises: FatalError."""
    token = settings.manager_token
    try:
        with advice():
            sites = read_sites(settings.manager, token.get_secret_value() if token else None)
    except ValueError as error:
        raise FatalError(f"manager_token: {error}", ExitCode.CONFIG) from error
    chosen = [each for each in sites if settings.site in (None, each.name)]
    if not chosen:
        names = ", ".join(each.name for each in sites)
        raise FatalError(f"--site {settings.site}: there is no such site; --manager names {names}", ExitCode.USAGE)
    return tuple(chosen)


@contextmanager
def the_manager(
    settings: CliSettings, *, task: str | None = None, run: str | None = None, client: str | None = None, hint: str = ""
) -> Iterator[ManagerApi]:
    """Open the API of the manager that has this task, run or client; with one manager, of that one.

    Raises:
        FatalError: no site has it, or several have; `hint` says what to do about the former.
    """
    sites = sites_of(settings)
    site, url = sites[0], sites[0].urls[0]
    if len(sites) > 1 or len(site.urls) > 1:
        with _asking(settings, sites) as managers:
            try:
                name = site.name if len(sites) == 1 else _choose(managers, task, run, client)
            except SiteChoiceError as error:
                raise _explain_choice(error, hint) from error
            site, url = next(each for each in sites if each.name == name), managers.at(name).url
    with ManagerApi(settings, url, token=site.token, site=site.name if len(sites) > 1 else None) as manager:
        yield manager


def print_all(
    settings: CliSettings,
    question: Callable[[AsyncManagerClient], Awaitable[Sequence[BaseModel]]],
    columns: Sequence[str],
    *,
    is_json: bool,
    newest: str | None = None,
) -> None:
    """Print a list of every site, with several sites each row with its site; `newest` is the time to sort them by.

    `question` returns a manager's records.

    Raises:
        FatalError: a site did not answer; what the others answered is printed before.
    """

    async def read(manager: AsyncManagerClient) -> list[Record]:
        return [as_record(each) for each in await question(manager)]

    answers, has_sites = ask_all(settings, read)
    rows = [{"site": name, **row} if has_sites else row for name, found in answers.by_site.items() for row in found]
    if has_sites and newest is not None:
        rows.sort(key=lambda row: datetime.fromisoformat(row[newest]), reverse=True)
    print_records(rows + problem_rows(answers, is_json=is_json), (*["site"] * has_sites, *columns), is_json=is_json)
    raise_problems(answers)


def find_everywhere(
    settings: CliSettings, question: Callable[[AsyncManagerClient], Awaitable[BaseModel]], *, what: str
) -> Iterator[Record]:
    """Yield what a question finds at each site that has it.

    Raises:
        FatalError: none has it, or a site did not answer.
    """

    async def read(manager: AsyncManagerClient) -> Record | None:
        try:
            return as_record(await question(manager))
        except ManagerRefusedError as error:
            if error.status == HTTPStatus.NOT_FOUND and has_sites:
                return None
            raise

    has_sites = len(sites_of(settings)) > 1
    answers, _ = ask_all(settings, read)
    for name, found in answers.by_site.items():
        if found is not None:
            yield {"site": name, **found} if has_sites else found
    raise_problems(answers)
    if not any(answers.by_site.values()):
        raise FatalError(f"no site has {what}; asked: {', '.join(answers.by_site)}", ExitCode.FAILED)


def ask_all(
    settings: CliSettings, question: Callable[[AsyncManagerClient], Awaitable[Any]]
) -> tuple[SiteAnswers[Any], bool]:
    """Return what every site answers, and whether there are several; the problem of a single one ends the verb."""
    sites = sites_of(settings)
    with _asking(settings, sites) as managers:
        answers = managers.ask(question)
    if len(sites) == 1:
        for error in answers.problems.values():
            raise explain_refusal(error) from error
    return answers, len(sites) > 1


def problem_rows(answers: SiteAnswers[Any], *, is_json: bool) -> list[Record]:
    """Return a record for each site that did not answer, for programs; people read it on stderr."""
    if not is_json:
        return []
    return [{"site": name, "problem": str(explain_refusal(error))} for name, error in answers.problems.items()]


def raise_problems(answers: SiteAnswers[Any]) -> None:
    """End the verb where a site did not answer, with the exit status that the first such site alone would have.

    Raises:
        FatalError: there is a problem.
    """
    if answers.problems:
        raise FatalError(_problems(answers.problems), _code(answers.problems))


@contextmanager
def _asking(settings: CliSettings, sites: Sequence[SiteAddress]) -> Iterator[SitesClient]:
    with file_errors():
        managers = SitesClient(sites, **access_of(settings))
    with advice(), managers:
        yield managers


def _choose(managers: SitesClient, task: str | None, run: str | None, client: str | None) -> str:
    if task is not None:
        return managers.site_of_task(task)
    if run is not None:
        return managers.site_of_run(run)
    assert client is not None, "what it is about"
    return managers.site_of_client(client)


def _explain_choice(error: SiteChoiceError, hint: str) -> FatalError:
    if error.found:
        return FatalError(f"{error.what} is at several sites: {', '.join(error.found)}. --site chooses one.", _USAGE)
    if not error.problems:
        return FatalError(f"no site has {error.what}; asked: {', '.join(error.asked)}.{hint}", ExitCode.FAILED)
    asked = f"{', '.join(error.asked)} do not have it" if error.asked else "no site answers"
    return FatalError(f"{error.what} was not found: {asked}\n{_problems(error.problems)}", _code(error.problems))


def _problems(problems: Mapping[str, ManagerClientError]) -> str:
    return "\n".join(f"site {name}: {explain_refusal(each)}" for name, each in problems.items())


def _code(problems: Mapping[str, ManagerClientError]) -> ExitCode:
    return explain_refusal(next(iter(problems.values()))).code


_USAGE = ExitCode.USAGE
