"""Writes constraints.txt: every package that the development environment needs, as installed here.

Run it in an environment in which the tests have passed: ``python .ci/constraints.py``. Only what
pyproject.toml asks for with the extras of tests and documentation, directly or not, is pinned;
whatever else lies in the environment is not. ``--check`` says what has changed instead of writing.
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "constraints.txt"
HEADER = (
    "# The versions that the tests pass with, made by `make constraints`. docs/dependencies.md\n"
    "# says why each direct dependency is there. Local parts of a version (+cpu) are left out, so\n"
    "# that any build of it fits.\n"
)


EXTRAS = frozenset({"dev", "operations", "site", "postgres", "rerun"})
"""With what ``dev`` names: atari, box2d, highway, mujoco, pictures, plots, sb3."""


def asked_for(extras: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    """What the project asks for with some of its extras: by the file, not as it was installed."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    optional = project["optional-dependencies"]
    lines = [*project["dependencies"], *(one for extra in extras for one in optional[extra])]
    found: list[tuple[str, frozenset[str]]] = []
    for requirement in map(Requirement, lines):
        if requirement.name == project["name"]:
            found += asked_for(frozenset(requirement.extras))
        else:
            found.append((requirement.name, frozenset(requirement.extras)))
    return found


def closure(todo: list[tuple[str, frozenset[str]]]) -> dict[str, str]:
    """Versions, by canonical name, of what is asked for and all that it needs, where installed."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        current, wanted = todo.pop()
        if (current, wanted) in seen:
            continue
        seen.add((current, wanted))
        try:
            package = metadata.distribution(current)
        except metadata.PackageNotFoundError:
            continue
        found[canonicalize_name(current)] = Version(package.version).public
        for line in package.requires or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*wanted, "")):
                todo.append((requirement.name, frozenset(requirement.extras)))
    return dict(sorted(found.items()))


def main() -> int:
    """Write, or check; 1 when a check finds a difference."""
    versions = closure(asked_for(EXTRAS))
    text = HEADER + "".join(f"{name}=={version}\n" for name, version in versions.items())
    if sys.argv[1:] != ["--check"]:
        FILE.write_text(text, encoding="utf-8")
        return 0
    old = set(FILE.read_text(encoding="utf-8").splitlines())
    new = set(text.splitlines())
    for line in sorted(old - new):
        sys.stdout.write(f"constraints.txt: {line} is not what is installed\n")
    for line in sorted(new - old):
        sys.stdout.write(f"installed, but not in constraints.txt: {line}\n")
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
