"""Several managers as one: `SitesClient`, and `AsyncSitesClient` for an event loop.

A site is a broker, its managers (one of them leads) and their database, and shares nothing with other sites. All are
asked at the same time, each request with its own time limit: a site that does not answer is a problem under its name.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial, update_wrapper
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar
from urllib.parse import quote

from anyio.from_thread import start_blocking_portal

from fedops_mqtt.manager.api.models import ClientRecord, Health, RunSummary, TaskRecord
from fedops_mqtt.manager.client import (
    MAX_JSON_BYTES,
    AsyncManagerClient,
    ManagerClient,
    ManagerClientError,
    ManagerRefusedError,
    ManagerUrlError,
)
from fedops_mqtt.runtime.site_addresses import SiteAddress, SiteUrlError, parse_sites

P = ParamSpec("P")
Answer = TypeVar("Answer")
Question = Callable[[AsyncManagerClient], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAnswers(Generic[Answer]):
    """What each site answered, or why it did not, both by the site's name and in the order of the managers given."""

    by_site: Mapping[str, Answer]
    problems: Mapping[str, ManagerClientError]


class SiteChoiceError(ManagerClientError):
    """What is asked for is at no site, or at several.

    `what` describes it, `found` are the sites that have it, `asked` those that answered; `problems` are the others'.
    """

    def __init__(
        self, what: str, *, found: Sequence[str], asked: Sequence[str], problems: Mapping[str, ManagerClientError]
    ) -> None:
        self.what = what
        self.found = tuple(found)
        self.asked = tuple(asked)
        self.problems = dict(problems)
        silent = "".join(f"; site {name} does not answer: {error}" for name, error in self.problems.items())
        if found:
            super().__init__(f"{what} is at several sites: {', '.join(found)}; say which one")
        elif asked:
            super().__init__(f"no site has {what}; asked: {', '.join(asked)}{silent}")
        else:
            super().__init__(f"no site could be asked for {what}{silent}")


def read_sites(managers: str | Sequence[str], token: str | None = None) -> tuple[SiteAddress, ...]:
    """Return the sites that a setting names, as `parse_sites`.

    Raises:
        ManagerUrlError: a text is no URL, or one URL has two names, or there is none at all.
        ValueError: `token` cannot be used.
    """
    try:
        return parse_sites(managers, token)
    except SiteUrlError as error:
        raise ManagerUrlError(error.url, error.problem) from error


class AsyncSitesClient:
    """The managers of several sites, for programs with an event loop; an async context manager.

    `managers` is `[NAME=]URL,…` or a list of such texts (`runtime.site_addresses.parse_sites`); `token` is one for all,
    or `NAME=TOKEN,…`; the other arguments are those of `ManagerClient`. A read returns what each site answered; what
    acts goes to one site: `at_task`, `at_run`, `at_client`.
    """

    def __init__(
        self,
        managers: str | Sequence[str] | Sequence[SiteAddress],
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        timeout_s: float = 10.0,
        max_json_bytes: int = MAX_JSON_BYTES,
    ) -> None:
        addresses = [each for each in managers if isinstance(each, SiteAddress)]
        self.sites = tuple(addresses) or read_sites(managers, token)  # type: ignore[arg-type]
        options: dict[str, Any] = {
            "ca_file": ca_file, "cert_file": cert_file, "key_file": key_file,
            "timeout_s": timeout_s, "max_json_bytes": max_json_bytes,
        }  # fmt: skip
        self._managers = {
            site.name: [AsyncManagerClient(url, token=site.token, **options) for url in site.urls]
            for site in self.sites
        }
        self._leading: dict[str, AsyncManagerClient] = {}
        self._life = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for managers in self._managers.values():
                for manager in managers:
                    await stack.enter_async_context(manager)
            self._life = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._life.aclose()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sites."""
        return tuple(self._managers)

    async def at(self, site: str) -> AsyncManagerClient:
        """Return a site's manager; of several the one that leads.

        Raises:
            KeyError: there is no site of this name.
            ManagerClientError: none of them answers as leader; it is the first one's error.
        """
        managers = self._managers[site]
        if len(managers) == 1:
            return managers[0]
        if site not in self._leading:
            self._leading[site] = await self._find_leader(managers)
        return self._leading[site]

    def forget_leader(self, site: str) -> None:
        """Look for a site's leader again when it is asked next: another one may lead by now."""
        self._leading.pop(site, None)

    async def ask(self, question: Question[Answer]) -> SiteAnswers[Answer]:
        """Ask every site at the same time; `question` gets a site's manager and returns its answer."""
        try:
            async with asyncio.TaskGroup() as group:
                asked = {name: group.create_task(self._ask(name, question), name=f"site {name}") for name in self.names}
        except ExceptionGroup as errors:  # of the question itself
            raise errors.exceptions[0] from None
        found = {name: task.result() for name, task in asked.items()}
        return SiteAnswers(
            by_site={name: each for name, each in found.items() if not isinstance(each, ManagerClientError)},
            problems={name: each for name, each in found.items() if isinstance(each, ManagerClientError)},
        )

    async def health(self) -> SiteAnswers[Health]:
        """Return how each site's manager is."""
        return await self.ask(lambda manager: manager.health())

    async def clients(
        self, *, task_id: str | None = None, presence: str | None = None
    ) -> SiteAnswers[list[ClientRecord]]:
        """Return the clients of each site."""
        return await self.ask(lambda manager: manager.clients(task_id=task_id, presence=presence))

    async def tasks(self) -> SiteAnswers[list[TaskRecord]]:
        """Return the tasks of each site."""
        return await self.ask(lambda manager: manager.tasks())

    async def runs(self, *, task_id: str | None = None) -> SiteAnswers[list[RunSummary]]:
        """Return the runs of each site, the newest first."""
        return await self.ask(lambda manager: manager.runs(task_id=task_id))

    async def site_of_task(self, task_id: str) -> str:
        """Return the site where a task is configured; where it is at none, the one that keeps versions of its app.

        Raises:
            SiteChoiceError: it is at no site that answers, or at several.
        """
        what = f"task {task_id}"
        tasks = await self.tasks()
        found = [name for name, of in tasks.by_site.items() if any(each.task_id == task_id for each in of)]
        if found:
            return self._only(what, found, tasks)
        versions = await self.ask(lambda manager: manager.apps(task_id))
        return self._only(what, [name for name, apps in versions.by_site.items() if apps], versions)

    async def site_of_run(self, run_id: str) -> str:
        """Return the site that has a run. Raises: as `site_of_task`."""
        return await self._site_of(f"run {run_id}", f"/runs/{quote(run_id, safe='')}")

    async def site_of_client(self, client_mac: str) -> str:
        """Return the site that knows a client, in whatever task. Raises: as `site_of_task`."""
        return await self._site_of(f"client {client_mac}", f"/clients/{quote(client_mac, safe='')}")

    async def at_task(self, task_id: str) -> AsyncManagerClient:
        """Return the manager where a task is configured. Raises: as `site_of_task`."""
        return await self.at(await self.site_of_task(task_id))

    async def at_run(self, run_id: str) -> AsyncManagerClient:
        """Return the manager that has a run. Raises: as `site_of_task`."""
        return await self.at(await self.site_of_run(run_id))

    async def at_client(self, client_mac: str) -> AsyncManagerClient:
        """Return the manager that knows a client. Raises: as `site_of_task`."""
        return await self.at(await self.site_of_client(client_mac))

    async def _ask(self, site: str, question: Question[Answer]) -> Answer | ManagerClientError:
        try:
            return await question(await self.at(site))
        except ManagerClientError as error:
            self.forget_leader(site)
            return error

    async def _site_of(self, what: str, path: str) -> str:
        async def has_it(manager: AsyncManagerClient) -> bool:
            try:
                await manager.request("GET", path)
            except ManagerRefusedError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    return False
                raise
            return True

        answers = await self.ask(has_it)
        return self._only(what, [name for name, is_there in answers.by_site.items() if is_there], answers)

    def _only(self, what: str, found: Sequence[str], answers: SiteAnswers[Any]) -> str:
        if len(found) != 1:
            raise SiteChoiceError(what, found=found, asked=tuple(answers.by_site), problems=answers.problems)
        return found[0]

    async def _find_leader(self, managers: Sequence[AsyncManagerClient]) -> AsyncManagerClient:
        async def problem_of(manager: AsyncManagerClient) -> ManagerClientError | None:
            try:
                await manager.health()
            except ManagerClientError as error:
                return error
            return None

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(problem_of(each), name=f"health of {each.url}") for each in managers]
        problems = [each.result() for each in asked]
        for manager, problem in zip(managers, problems, strict=True):
            if problem is None:
                return manager
        found = [each for each in problems if each is not None]
        raise next((each for each in found if isinstance(each, ManagerRefusedError) and each.is_permission), found[0])


def _blocking(
    method: Callable[Concatenate[AsyncSitesClient, P], Coroutine[Any, Any, Answer]],
) -> Callable[Concatenate["SitesClient", P], Answer]:
    """Return a method of `AsyncSitesClient` as one of `SitesClient`, which returns the answer."""

    def blocking(client: "SitesClient", /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        answer: Answer = client._loop.call(partial(method, client._sites, *args, **kwargs))
        return answer

    update_wrapper(blocking, method)
    return blocking


class SitesClient:
    """The managers of several sites, for programs without an event loop, and for notebooks; a context manager.

    The arguments, and the methods, are those of `AsyncSitesClient`; the managers that `at`, `at_task`, `at_run` and
    `at_client` return are `ManagerClient`s, open as long as the block.
    """

    def __init__(self, managers: str | Sequence[str] | Sequence[SiteAddress], **options: Any) -> None:
        self._options = {name: value for name, value in options.items() if name != "token"}
        self._sites = AsyncSitesClient(managers, **options)
        self._life = ExitStack()
        self._managers: dict[str, ManagerClient] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # An event loop of its own on a thread: in a notebook this thread has one that runs.
            self._loop = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._loop.wrap_async_context_manager(self._sites))
            self._life = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._life.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sites."""
        return self._sites.names

    health = _blocking(AsyncSitesClient.health)
    clients = _blocking(AsyncSitesClient.clients)
    tasks = _blocking(AsyncSitesClient.tasks)
    runs = _blocking(AsyncSitesClient.runs)
    site_of_task = _blocking(AsyncSitesClient.site_of_task)
    site_of_run = _blocking(AsyncSitesClient.site_of_run)
    site_of_client = _blocking(AsyncSitesClient.site_of_client)

    def ask(self, question: Question[Answer]) -> SiteAnswers[Answer]:
        """Ask every site at the same time; `question` is a coroutine function that gets a site's manager."""
        return self._loop.call(self._sites.ask, question)

    def at(self, site: str) -> ManagerClient:
        """Return a site's manager; of several the one that leads. Raises: as `AsyncSitesClient.at`."""
        manager = self._loop.call(self._sites.at, site)
        if manager.url not in self._managers:
            token = next(each.token for each in self._sites.sites if each.name == site)
            opened = ManagerClient(manager.url, token=token, **self._options)
            self._managers[manager.url] = self._life.enter_context(opened)
        return self._managers[manager.url]

    def at_task(self, task_id: str) -> ManagerClient:
        """Return the manager where a task is configured. Raises: as `site_of_task`."""
        return self.at(self.site_of_task(task_id))

    def at_run(self, run_id: str) -> ManagerClient:
        """Return the manager that has a run. Raises: as `site_of_task`."""
        return self.at(self.site_of_run(run_id))

    def at_client(self, client_mac: str) -> ManagerClient:
        """Return the manager that knows a client. Raises: as `site_of_task`."""
        return self.at(self.site_of_client(client_mac))
