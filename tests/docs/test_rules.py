"""Rules of the design that the source itself can be held to."""

from __future__ import annotations

import ast
import functools
import itertools
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from interlatent_live.cli.main import app
from interlatent_live.config import EndpointSettings, Settings, leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("interlatent_live", "services", "prompts")
    for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "recv_pyobj", "send_pyobj"}
ONLY_WHERE_PRESENT = {"triton"}  # comes with CUDA builds of torch
NAMED_OTHERWISE = {"rerun": ["rerun-sdk"]}
"""Packages of extras that may not be installed, and are not named as they are imported."""
PEER_SCRIPT = "_peers.py"
"""Such a benchmark's script runs in the peer's environment, imports it there and prints."""
Node = TypeVar("Node", bound=ast.AST)
GENERIC = {"services", "prompts", "tests", "deploy", "examples"}


@functools.cache
def trees() -> list[tuple[str, ast.Module]]:
    return [
        (str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8")))
        for path in SOURCES
    ]


@functools.cache
def interesting() -> list[tuple[str, ast.AST]]:
    """Every import and call, from one walk through everything."""
    return [
        (f"{name}:{node.lineno}", node)
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
    ]


def nodes(kind: type[Node]) -> Iterator[tuple[str, Node]]:
    return ((where, node) for where, node in interesting() if isinstance(node, kind))


def called(node: ast.Call) -> str:
    """The last name of what is called: ``load`` of ``torch.load(…)``."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def imported() -> Iterator[tuple[str, str]]:
    for where, plain in nodes(ast.Import):
        for alias in plain.names:
            yield where, alias.name.split(".")[0]
    for where, wanted in nodes(ast.ImportFrom):
        yield where, (wanted.module or "").split(".")[0] if wanted.level == 0 else "."


def test_there_is_source_to_hold_to_rules() -> None:
    assert len(SOURCES) > 40
    assert any(path.is_relative_to(ROOT / "services") for path in SOURCES)


def test_nothing_unpickles() -> None:
    assert [found for found in imported() if found[1] in FORBIDDEN_MODULES] == []
    assert [
        where
        for where, call in nodes(ast.Call)
        if any(word.arg == "allow_pickle" and _true(word.value) for word in call.keywords)
    ] == []


def test_torch_loads_weights_only() -> None:
    assert [
        where
        for where, call in nodes(ast.Call)
        if called(call) == "load"
        and ast.unparse(call.func) == "torch.load"
        and not any(word.arg == "weights_only" and _true(word.value) for word in call.keywords)
    ] == []


def test_nothing_evaluates_text() -> None:
    found = [
        where
        for where, call in nodes(ast.Call)
        # As a name of its own: `policy.eval()` puts a module into its inference mode.
        if called(call) in FORBIDDEN_CALLS
        and (isinstance(call.func, ast.Name) or called(call).endswith("pyobj"))
    ]
    assert found == []


def _true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_no_generic_name_is_imported() -> None:
    assert [found for found in imported() if found[1] in GENERIC] == []


def test_everything_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    owners = {**NAMED_OTHERWISE, **metadata.packages_distributions()}
    foreign = {
        (where, name)
        for where, name in imported()
        if PEER_SCRIPT not in where
        and name not in sys.stdlib_module_names | ONLY_WHERE_PRESENT | {"interlatent_live", "."}
    }
    assert len(foreign) > 20
    # What is not installed here, an extra's, goes by the name that it is imported by.
    undeclared = {
        found
        for found in foreign
        if not declared & {canonicalize_name(owner) for owner in owners.get(found[1], [found[1]])}
    }
    assert undeclared == set()


def test_only_the_command_line_prints() -> None:
    found = [
        where
        for where, call in nodes(ast.Call)
        if isinstance(call.func, ast.Name)
        and call.func.id == "print"
        and not where.startswith(("interlatent_live/cli/", "interlatent_live/engine/exec_child.py"))
        and PEER_SCRIPT not in where
    ]
    assert found == []


def test_every_module_says_why_it_exists() -> None:
    assert [name for name, tree in trees() if not ast.get_docstring(tree)] == []


def test_no_suppression_is_without_its_code() -> None:
    bare = re.compile(r"#\s*noqa(?!:)|#\s*type:\s*ignore(?!\[)")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if bare.search(line)
    ]
    assert found == []


def commands(name: str = "", command: object = None) -> Iterator[tuple[str, object]]:
    node = command or typer.main.get_command(app)
    inner = getattr(node, "commands", None)
    if inner is None:
        yield name, node
        return
    for key, value in inner.items():
        if value.hidden:
            continue
        yield from commands(f"{name} {key}".strip(), value)


ALL_COMMANDS = dict(commands())


@pytest.mark.parametrize("name", sorted(ALL_COMMANDS))
def test_every_command_says_what_it_does(name: str) -> None:
    command = ALL_COMMANDS[name]
    assert len(getattr(command, "help", "") or "") > 20
    undocumented = [
        parameter.name
        for parameter in getattr(command, "params", [])
        if getattr(parameter, "param_type_name", "") == "option" and not parameter.help
    ]
    assert undocumented == []


def test_help_is_instant_for_want_of_heavy_imports() -> None:
    code = (
        "import sys, interlatent_live.cli.main;"
        "heavy = {'torch', 'zmq', 'openai', 'anthropic', 'sklearn', 'scipy', 'numpy', 'mujoco'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_every_setting_is_honoured() -> None:
    """A setting that nothing reads would be a promise that nobody keeps."""
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in SOURCES if path.name != "config.py"
    )
    # Read through a method of the configuration, or kept by its own validation.
    indirectly = {"security.remote_health"} | {
        f"endpoints.{name}" for name in EndpointSettings.model_fields if "_" in name
    }
    unread = [
        name
        for name, _ in leaves(Settings())
        if name not in indirectly and not re.search(rf"\.{name.partition('.')[2]}\b", text)
    ]
    assert unread == []


def test_rooms_without_torch_keep_their_promise() -> None:
    """What `docs/architecture.md` says needs no torch is imported without it."""
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [
        match[1]
        for line in architecture.splitlines()
        if (match := re.match(r"\| `(\w+)/` \|.*\| no \|$", line))
    ]
    assert len(rooms) > 4
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] == "interlatent_live"
        and path.relative_to(ROOT).parts[1] in rooms
        # What a process, or Alembic, runs is not there to be imported.
        and path.name not in {"__main__.py", "exec_child.py", "env.py"}
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.splitlines()[-1:]
