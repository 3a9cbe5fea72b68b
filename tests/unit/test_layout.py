"""The house stays as it was drawn: who may import whom, and where the heavy or foreign libraries may enter."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "fedops_mqtt"

ORDER = (
    "protocol",
    "core",
    "runtime",
    "apps",
    "bus",
    "line",
    "store",
    "model_types",
    "training",
    "device",
    "aggregation",
    "manager",
    "client",
    "server",
    "dashboard",
    "bridge",
    "enrolment",
    "simulation",
    "demo",
    "cli",
)
"""A folder imports itself and what stands before it."""

FORBIDDEN = {
    "line": ("bus",),
    "training": ("bus",),
    "aggregation": ("training", "device"),
    "manager": ("training", "device", "aggregation"),
    "client": ("aggregation", "manager"),
    "server": ("training", "device", "manager", "client"),
    "dashboard": ("training", "device", "aggregation", "client", "server"),
    "bridge": ("client", "server", "dashboard"),
    "enrolment": ("training", "device", "aggregation", "manager", "client", "server", "dashboard", "bridge"),
    "simulation": ("bus", "manager", "dashboard", "bridge", "enrolment"),
    "demo": ("training", "device", "client", "dashboard", "bridge", "enrolment", "simulation"),
}
"""Rooms that a room does not import though they stand before it."""

MANAGER_OF_THE_PAGE = (
    "fedops_mqtt.manager.api",
    "fedops_mqtt.manager.client",
    "fedops_mqtt.manager.errors",
    "fedops_mqtt.manager.events",
    "fedops_mqtt.manager.sites",
)
"""What the dashboard may import of the manager: the API with its records, its clients, its refusals and changes."""

ATTACHES_THE_PAGE = "dashboard/front.py"
"""Takes what the pages need out of the manager's context; no other module of the dashboard knows that."""

STARTS_A_PROGRAM_ABOVE = {"demo/processes.py": {"fedops_mqtt.cli"}}
"""The demo runs the commands that its visitor would type."""

ONLY_IN = {
    "aiomqtt": ("bus/",),
    "paho": ("bus/",),
    "flwr": (
        *("line/", "training/", "aggregation/", "server/", "model_types/", "client/registered_client"),
        *("bridge/", "demo/client.py", "simulation/", "cli/apps.py"),
    ),
    "torch": ("model_types/",),
    "tensorflow": ("model_types/",),
    "keras": ("model_types/",),
    "transformers": ("model_types/",),
    "wandb": ("client/client_wandb", "runtime/wandb_log"),
    "kubernetes": ("manager/kubernetes_cluster",),
    "sqlalchemy": ("manager/",),
    "nicegui": ("dashboard/",),
    "prometheus_client": ("manager/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
}
"""Where a library may be imported: path prefixes below the package."""

MAX_LINES = 500


def modules() -> list[str]:
    """Every module's path below the package."""
    return [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]


@cache
def imports(module: str) -> frozenset[str]:
    """Every dotted name that a module imports, in functions too; what is only for type checkers is left out."""
    return frozenset(_imports(module))


def _imports(module: str) -> Iterator[str]:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    skipped = {id(inner) for node in ast.walk(tree) if _is_for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room_of(module: str) -> str:
    return module.partition("/")[0].removesuffix(".py")


def test_a_room_imports_only_what_stands_before_it() -> None:
    assert {module: rooms for module in modules() if (rooms := _rooms_above(module))} == {}


def _rooms_above(module: str) -> set[str]:
    room = room_of(module)
    if module == "__init__.py":
        return set()
    return rooms_used_by(module) - {*ORDER[: ORDER.index(room) + 1]}


def rooms_used_by(module: str) -> set[str]:
    """Every room that a module imports, or names in a text that is to be imported or run."""
    ours = (name for name in imports(module) if name.startswith("fedops_mqtt."))
    texts = named_in_texts(module) - STARTS_A_PROGRAM_ABOVE.get(module, set())
    return {re.split("[.:]", name)[1] for name in (*ours, *texts)} - {"__version__"}


@cache
def named_in_texts(module: str) -> frozenset[str]:
    """Every string of the form `fedops_mqtt.room.module` or `fedops_mqtt.room.module:attribute`."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return frozenset(text for text in values if isinstance(text, str) and _DOTTED.fullmatch(text))


_DOTTED = re.compile(r"fedops_mqtt\.\w+([.:]\w+)*")


def test_a_program_or_loader_that_a_module_names_counts_as_used_by_it() -> None:
    assert "training" in rooms_used_by("device/training_process.py")
    for module, names in STARTS_A_PROGRAM_ABOVE.items():
        assert names <= named_in_texts(module), f"{module} does not name {names} any more"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_without_rooms_that_are_not_its_business(room: str) -> None:
    assert {*FORBIDDEN[room]} <= {*ORDER[: ORDER.index(room)]}, "the order forbids the rest"
    used = {module: rooms_used_by(module) & {*FORBIDDEN[room]} for module in modules() if room_of(module) == room}
    assert {module: rooms for module, rooms in used.items() if rooms} == {}


def test_the_page_knows_the_api_and_nothing_else_of_the_manager() -> None:
    used = {
        module: {
            name
            for name in imports(module)
            if name.startswith("fedops_mqtt.manager.")
            and not any(f"{name}.".startswith(f"{allowed}.") for allowed in MANAGER_OF_THE_PAGE)
        }
        for module in modules()
        if room_of(module) == "dashboard"
    }
    attached = used.pop(ATTACHES_THE_PAGE)
    assert {module: names for module, names in used.items() if names} == {}
    assert attached == {"fedops_mqtt.manager.context", "fedops_mqtt.manager.context.ManagerContext"}


def test_no_module_imports_itself_in_the_end() -> None:
    dotted = {f"fedops_mqtt.{name.removesuffix('.py').replace('/', '.')}": name for name in modules()}
    TopologicalSorter({name: imports(module) & dotted.keys() for name, module in dotted.items()}).prepare()


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room_of(module) for module in modules()} - {"__init__"}
    assert rooms <= {*ORDER}


def test_the_page_about_the_house_names_its_rooms_in_their_order() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| room |") : page.index("Third-party")]
    first_cells = [row.split("|")[1] for row in table.splitlines()[2:] if row]
    named = [name for cell in first_cells for name in re.findall(r"`(\w+)/?`", cell)]
    assert named == [*ORDER]


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_enters_only_where_it_belongs(library: str) -> None:
    importing = {module for module in modules() if library in {name.partition(".")[0] for name in imports(module)}}
    assert {module for module in importing if not module.startswith(ONLY_IN[library])} == set()


def test_a_file_has_one_subject_and_stays_short() -> None:
    lines = {module: len((PACKAGE / module).read_text(encoding="utf-8").splitlines()) for module in modules()}
    assert {module: count for module, count in lines.items() if count > MAX_LINES} == {}


def test_a_class_name_means_one_thing_in_the_whole_package() -> None:
    homes: dict[str, list[str]] = {}
    for module in modules():
        for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


@pytest.mark.parametrize("room", ["protocol", "core"])
def test_pure_rooms_have_no_await_clock_or_socket(room: str) -> None:
    assert [module for module in modules() if room_of(module) == room and not _is_pure(module)] == []


def _is_pure(module: str) -> bool:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    waits = any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
    return not waits and not _IMPURE & {name.partition(".")[0] for name in imports(module)}


_IMPURE = {"asyncio", "socket", "time", "logging", "random", "os", "threading"}

HEAVY = {
    *("flwr", "torch", "wandb", "numpy", "sqlalchemy", "rich", "httpx", "grpc", "typer", "sklearn", "safetensors"),
    *("fastapi", "starlette", "uvicorn"),  # the shim's: loaded where it is asked for
}


@pytest.mark.parametrize(
    "module", ["fedops_mqtt", "fedops_mqtt.cli", "fedops_mqtt.cli.daemon", "fedops_mqtt.client.app"]
)
def test_what_the_daemon_imports_is_light(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == []


def test_the_environment_is_read_in_one_place() -> None:
    reading = {
        module
        for module in modules()
        if {"os.environ", "os.getenv"} & set(_attributes(module)) and module not in ENVIRONMENT_PASSED_ON
    }
    assert reading == {"runtime/settings.py"}


ENVIRONMENT_PASSED_ON = {
    "bus/mosquitto.py": "PATH, to find mosquitto as a shell would",
    "device/training_process.py": "a training process inherits it",
    "runtime/remote_launch.py": "an FL server inherits it",
    "line/__init__.py": "flwr reads its switches from there",
}
"""Modules that hand the environment on to somebody else, and read no setting from it."""


def _attributes(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
