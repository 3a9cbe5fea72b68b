"""Finds tests that cannot fail: breaks one expression of a module at a time, and runs the pure tests over it.

    make mutate ARGS="--count 100 --seed 1"                     a sample over the pure modules
    make mutate ARGS="--only core/fencing.py --count 0"            every mutant of one module

A mutant that no test kills is printed: its line as it was and as it is. Some change nothing that
anybody can see; each of the others is a sentence that no test says.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fedops_mqtt"
PURE = (
    *("core", "protocol", "store", "line/codec.py", "line/reply_check.py", "line/members.py"),
    *("bus/events.py", "bus/owner.py", "bus/fleet_view.py"),
)
TESTS = {
    "core": ("unit/core", "model"),
    "protocol": ("unit/protocol", "unit/core", "unit/bus"),
    "store": ("unit/store", "unit/server"),
    "line": ("unit/line",),
    "bus": ("unit/bus", "integration/bus/test_bus_owner.py"),
}
"""By room: the tests that have to notice, below tests/; those that are not there are left out."""
LIMIT_S = 120
"""A mutant that loops for ever is killed by it too."""

REWRITTEN = "ignore::pytest.PytestAssertRewriteWarning"
"""hypothesis is imported before pytest, once for all mutants."""

COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult}


@dataclass(frozen=True)
class Mutant:
    """One changed module."""

    path: Path
    line: int
    tree: ast.Module

    def __str__(self) -> str:
        before = self.path.read_text(encoding="utf-8").splitlines()[self.line - 1].strip()
        changed = next(node for node in ast.walk(self.tree) if getattr(node, "is_mutant", False))
        return f"{self.path.relative_to(ROOT)}:{self.line}: {before}\n    -> {ast.unparse(changed).splitlines()[0]}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for number, node in enumerate(ast.walk(tree)):
        for change in changes_of(node):
            mutated = copy.deepcopy(tree)
            target = next(each for index, each in enumerate(ast.walk(mutated)) if index == number)
            change(target)
            target.is_mutant = True  # type: ignore[attr-defined]
            yield Mutant(path, getattr(node, "lineno", 1), ast.fix_missing_locations(mutated))


def changes_of(node: ast.AST) -> Iterator[Callable[[Any], None]]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARED:
            yield lambda each: setattr(each, "ops", [COMPARED[type(op)]()])
        case ast.BoolOp(op=ast.And()):
            yield lambda each: setattr(each, "op", ast.Or())
        case ast.BoolOp(op=ast.Or()):
            yield lambda each: setattr(each, "op", ast.And())
        case ast.BinOp(op=op) if type(op) in COMPUTED:
            yield lambda each: setattr(each, "op", COMPUTED[type(op)]())
        case ast.Constant(value=bool() as value):
            yield lambda each: setattr(each, "value", not value)
        case ast.Constant(value=int() as value):
            yield lambda each: setattr(each, "value", value + 1)
        case ast.If(test=test) | ast.IfExp(test=test):
            yield lambda each: setattr(each, "test", ast.UnaryOp(ast.Not(), copy.deepcopy(test)))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield lambda each: each.__dict__.update(op=ast.Not(), operand=ast.UnaryOp(ast.Not(), operand))
        case ast.Expr(value=ast.Call()):
            yield lambda each: setattr(each, "value", ast.Constant(None))


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from its mutated tree."""

    def __init__(self, mutant: Mutant) -> None:
        parts = mutant.path.relative_to(ROOT).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.mutant = mutant

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        is_package = self.mutant.path.name == "__init__.py"
        where = [str(self.mutant.path.parent)] if is_package else None
        return importlib.util.spec_from_file_location(
            name, self.mutant.path, loader=self, submodule_search_locations=where
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.tree, str(self.mutant.path), "exec"), module.__dict__)


def survives(mutant: Mutant | None, tests: list[str]) -> bool:
    """Run the tests over a mutant, or over what there is, in a fork of this process."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            signal.alarm(LIMIT_S)
            code = _run(mutant, tests)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 1, 2, 4, -signal.SIGALRM), f"pytest itself failed with {code}"
    return code == 0


def _run(mutant: Mutant | None, tests: list[str]) -> int:
    if mutant is not None:
        sys.meta_path.insert(0, Finder(mutant))
    import pytest

    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not long", "-W", REWRITTEN, *tests])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=PURE, help="modules or folders below fedops_mqtt/")
    parser.add_argument("--count", type=int, default=100, help="mutants a room; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    import hypothesis  # noqa: F401  (what every fork needs is imported once; nothing of ours)
    import numpy  # noqa: F401
    import pydantic  # noqa: F401

    chosen = [PACKAGE / name for name in options.only]
    rooms: dict[str, list[Mutant]] = {}
    for path in sorted({file for each in chosen for file in (each.rglob("*.py") if each.is_dir() else [each])}):
        rooms.setdefault(path.relative_to(PACKAGE).parts[0], []).extend(mutants_of(path))
    source = random.Random(options.seed)
    for room, mutants in rooms.items():
        sample = mutants if not options.count else source.sample(mutants, min(options.count, len(mutants)))
        tests = [str(ROOT / "tests" / name) for name in TESTS[room] if (ROOT / "tests" / name).exists()]
        assert survives(None, tests), f"the tests of {room} fail without any mutant"
        alive = []
        for mutant in sample:
            if survives(mutant, tests):
                alive.append(mutant)
                print(mutant, flush=True)
        print(f"{room}: {len(sample)} of {len(mutants)} mutants, {len(alive)} survive", flush=True)


if __name__ == "__main__":
    main()
