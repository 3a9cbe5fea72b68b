"""What a manager refuses; each error states the request, the obstacle and what to do."""


class ManagerError(Exception):
    """The manager cannot do what was asked of it."""


class UnknownTaskError(ManagerError):
    """No such task in the tasks file, and no app was published for it."""

    def __init__(self, task_id: str, known: list[str]) -> None:
        self.task_id = task_id
        self.known = known
        names = ", ".join(known) or "none"
        super().__init__(
            f"task {task_id!r} is not known (known: {names}); add a [tasks.{task_id}] table to the tasks file, or "
            f"publish an app: fedops-mqtt app publish FOLDER --task {task_id}"
        )


class NotLaunchableError(ManagerError):
    """The manager cannot start the task's server as the task is: mostly it has no command, and others start it."""

    def __init__(self, task_id: str, problem: str | None = None) -> None:
        self.task_id = task_id
        super().__init__(
            (problem and f"task {task_id!r}: {problem}")
            or f"task {task_id!r} has neither `command`, `module` nor a published app with a ServerApp; its runs begin "
            "when its server announces itself (adopt = true)"
        )


class TaskBusyError(ManagerError):
    """The task has an active run already; it has one server and one server topic."""

    def __init__(self, task_id: str, run_id: str) -> None:
        self.task_id = task_id
        self.run_id = run_id
        super().__init__(f"task {task_id!r} has an active run, {run_id}; wait for its end or stop it")


class UnknownRunError(ManagerError):
    """No such run in the journal."""

    def __init__(self, run_id: str, problem: str = "is not known") -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id!r} {problem}")


class UnreadableRunError(UnknownRunError):
    """A run's row in the journal is not what this program writes."""

    def __init__(self, run_id: str, problem: str) -> None:
        super().__init__(run_id, f"is in the journal, but cannot be read: {problem}")


class UnknownClientError(ManagerError):
    """No such client on the bus."""

    def __init__(self, client_mac: str) -> None:
        self.client_mac = client_mac
        super().__init__(f"client {client_mac} is not known; it has no retained status")


class UnknownModelError(ManagerError):
    """No such file in the task's model store on this machine."""

    def __init__(self, task_id: str, file_name: str) -> None:
        self.task_id = task_id
        self.file_name = file_name
        super().__init__(f"task {task_id!r} has no global model {file_name!r} on the manager's machine")


class UnknownAppError(ManagerError):
    """No such published app."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no published app: {what}; `fedops-mqtt app list TASK` lists a task's versions")


class NoEarlierAppError(ManagerError):
    """Nothing was published before a task's current app, or nothing at all."""

    def __init__(self, task_id: str, *, has_versions: bool) -> None:
        problem = f"no app was published for task {task_id!r}; fedops-mqtt app publish FOLDER --task {task_id}"
        if has_versions:
            problem = f"task {task_id!r} has no earlier version of its app; name one of `fedops-mqtt app list`"
        super().__init__(problem)


class BundleMissingError(ManagerError):
    """A version's bundle is not in the journal: it was published before bundles were kept there."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"the manager no longer has the bundle of app {digest}; publish it again")


class RunConfigError(ManagerError):
    """A run's configuration does not fit its app."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"run configuration: {problem}")


class ClientPresentError(ManagerError):
    """An online client cannot be forgotten: it would publish its status again."""

    def __init__(self, client_mac: str, task_id: str) -> None:
        self.client_mac = client_mac
        self.task_id = task_id
        super().__init__(
            f"client {client_mac} is here (task {task_id!r}); stop its daemon first, then forget it "
            "(--force forgets it now; a running daemon publishes its status again)"
        )


class TooFewClientsError(ManagerError):
    """A run asks for more clients than it names."""

    def __init__(self, min_clients: int, num_named: int) -> None:
        self.min_clients = min_clients
        self.num_named = num_named
        super().__init__(f"min_clients is {min_clients}, but only {num_named} clients are named")


class TasksFileError(ManagerError):
    """The tasks file cannot be read, or a value in it is invalid."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"tasks file {path}: {problem}; correct it, or name another with --tasks")


class StateDirError(ManagerError):
    """The folder for journal, logs and secrets cannot be made or used."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"state folder {path}: {problem}; choose one that can be written with --state-dir")


class JournalVersionError(ManagerError):
    """The journal was written by a newer version of this program."""

    def __init__(self, url: str, found: str, known: str) -> None:
        self.found = found
        self.known = known
        super().__init__(f"journal {url} has schema version {found}, not {known}; use a newer program")


class JournalUrlError(ManagerError):
    """The database URL cannot be used."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"database_url: {problem}")


class JournalUnusableError(ManagerError):
    """The journal cannot be read or written; nothing may be done that is not in it."""

    def __init__(self, journal: str, problem: str) -> None:
        self.journal = journal
        super().__init__(f"journal {journal}: {problem}; look at its disk, its folder's permissions or its database")


class JournalAwayError(ManagerError):
    """The database cannot be reached at the moment; what was asked can be asked again."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the database cannot be reached: {problem}; ask again in a moment")


class ApiAddressError(ManagerError):
    """The API cannot listen where it should."""

    def __init__(self, address: str, problem: str) -> None:
        self.address = address
        super().__init__(
            f"the API cannot listen on {address}: {problem}; free it, or choose another (FEDOPS_MQTT_HTTP)"
        )


class LeaseLostError(ManagerError):
    """Another manager leads now; this one must act no more."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(
            f"another manager leads now ({holder}); this one goes back to standby when it is started again"
        )
