from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
)


def fenced(heading: str) -> list[str]:
    """The fenced blocks in the section of the README under a heading."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```[a-z]*\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("heading", ["Install and run", "Test"])
def test_each_of_the_two_headings_has_one_command_on_one_line(heading: str) -> None:
    assert README.count(f"\n## {heading}\n") == 1
    blocks = fenced(heading)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) == 1


def test_the_commands_are_the_ones_that_ci_runs() -> None:
    assert fenced("Install and run")[0].strip() == (
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e . "
        "&& .venv/bin/interlatent-live demo"
    )
    assert fenced("Test")[0].strip() == (
        '.venv/bin/pip install -c constraints.txt -e ".[dev]" '
        "&& .venv/bin/pytest -n auto --dist loadfile"
    )
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'readme_command "Install and run"' in script
    assert 'readme_command "Test"' in script


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in {line for group in groups for line in group}:
        name = re.match(r"[A-Za-z0-9-]+", requirement)
        assert name is not None
        if name[0] != "interlatent-live":
            assert re.search(rf"\b{re.escape(name[0])}\b", reasons), name[0]
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in reasons


def test_the_version_is_said_once_more_and_equally() -> None:
    import interlatent_live  # noqa: PLC0415 - its version is the question

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert interlatent_live.__version__ == project["version"]


def test_every_room_of_the_package_is_described() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [
        path.parent.name
        for path in (ROOT / "interlatent_live").glob("*/__init__.py")
        if not path.parent.is_symlink()
    ]
    assert len(rooms) > 8
    assert [room for room in rooms if f"`{room}/`" not in architecture] == []
    for folder in ("services/", "prompts/", "tests/", "deploy/"):
        assert f"`{folder}`" in architecture
