"""The table of FedOps' names is whole: the published package, read and not imported, has nothing that is not in it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fedops_names import EARLIER, NAMES, OURS, REPORTS, WORDS

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
FEDOPS = HERE.parents[1] / ".venv-fedops" / "lib"
ABSENT = tuple(word.name for word in WORDS if word.kind == "absent")
ENVIRONMENT = re.compile(r"(?:environ(?:\.get\(|\[)|_get_\w+_env\(|_http_url\()\s*['\"]([A-Z][A-Z0-9_]+)")
PATH = re.compile(r"/(?:FLSe|client_perf|server_perf)/\w+|/(?:info/|online|start|trainFin|trainFail|flclient_out)\b")
NOT_FEDOPS = {"TF_CPP_MIN_LOG_LEVEL", "TOKENIZERS_PARALLELISM", "RAY_DISABLE_DOCKER_CPU_WARNING"}
"""Variables that it sets for others."""


@pytest.fixture(scope="module")
def package() -> Path:
    found = list(FEDOPS.glob("python*/site-packages/fedops"))
    assert found, "the published FedOps is not installed: run `make test-frameworks`"
    return found[0]


def modules(package: Path) -> Iterator[tuple[str, ast.Module, str]]:
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        if not name.endswith("__init__") and name != "__main__":
            text = path.read_text(encoding="utf-8")
            yield name, ast.parse(text), text


def functions(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Every public class, function and method, with its parameters; of a class those of its constructor, or None."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, parameters(node)
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            made = [parameters(each)[1:] for each in methods if each.name == "__init__"]
            yield node.name, made[0] if made else None
            yield from ((f"{node.name}.{each.name}", parameters(each)[1:]) for each in methods)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    return tuple(each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))


def public_names(package: Path) -> dict[str, tuple[str, ...] | None]:
    return {
        f"{module}.{name}": found
        for module, tree, _ in modules(package)
        for name, found in functions(tree)
        if not any(part.startswith("_") for part in name.split("."))
    }


def is_absent(name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in ABSENT)


def test_every_public_name_is_in_the_table_with_its_parameters(package: Path) -> None:
    table = {f"{row.module}.{row.name}": row.parameters for row in NAMES}
    found = {name: said for name, said in public_names(package).items() if not is_absent(name)}
    theirs = {name for name in table if name.rpartition(".")[2] not in OURS} - EARLIER
    assert set(found) == theirs
    assert {name: said for name, said in found.items() if said is not None and said != table[name]} == {}


def test_names_that_are_listed_as_absent_exist_in_fedops(package: Path) -> None:
    names = [*public_names(package), *(f"{module}." for module, _, _ in modules(package))]
    assert [each for each in ABSENT if not any(name == each or name.startswith(f"{each}.") for name in names)] == []


def test_every_variable_that_it_reads_is_in_the_table(package: Path) -> None:
    said = {name for word in WORDS if word.kind == "environment" for name in word.name.split(", ")}
    parts = ("server.", "client.")
    texts = [text for module, _, text in modules(package) if module.startswith(parts)]
    read = {name for text in texts for name in ENVIRONMENT.findall(text)}
    assert read - NOT_FEDOPS == said


def test_every_endpoint_that_it_calls_or_serves_is_in_the_table(package: Path) -> None:
    said = [word.name.partition(" ")[2] for word in WORDS if word.kind == "endpoint"]
    called = {
        path for module, _, text in modules(package) if "agent_studio" not in module for path in PATH.findall(text)
    }
    kinds = {f"/client_perf/{row.name.partition('/')[2]}" for row in REPORTS} | {"/client_perf/xai_result"}
    assert [path for path in called if path not in kinds and not any(each.startswith(path) for each in said)] == []
    assert {path for path in called if path.startswith("/client_perf/")} == kinds & called


def test_every_field_that_it_sends_is_in_the_table(package: Path) -> None:
    said = {row.name.rpartition("/")[2]: set(row.fields) for row in REPORTS}
    sent = {
        "train_result": literal(package, "client/client_fl.py", "results", "fl_task_id"),
        "test_result": literal(package, "client/client_fl.py", "test_result"),
        "client_time_result": literal(package, "client/app.py", "client_all_time_result"),
        "FLSeUpdate": literal(package, "server/app.py", "inform_Payload"),
        "gl_model_evaluation": literal(package, "server/app.py", "server_eval_result"),
        "server_time_result": literal(package, "server/app.py", "server_all_time_result"),
    }
    assert {name: fields - said[name] for name, fields in sent.items() if fields - said[name]} == {}
    assert all(sent.values())


def literal(package: Path, path: str, variable: str, having: str = "") -> set[str]:
    """The names in the dicts that FedOps puts into a variable; of several dicts those that have a certain name."""
    tree = ast.parse((package / path).read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Dict)
            and ast.unparse(node.targets[0]) == variable
        ):
            keys = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
            found |= keys if not having or having in keys else set()
    return found
