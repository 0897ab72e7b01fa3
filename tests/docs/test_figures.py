from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    """A script of the build as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names in their annotations
    spec.loader.exec_module(module)
    return module


figures = load("figures")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    report = {
        "rows": [{"case": "ring append", "value": 5.04}, {"case": "send", "value": 21}],
        "deep": {"a/b": True},
    }
    (tmp_path / "out.json").write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("out.json#/rows/ring_append/value .1f µs", "5.0 µs"),
        ("out.json#/rows/1/value", "21"),
        ("out.json#/rows/0/value .3f", "5.040"),
        ("out.json#/deep/a~1b", "True"),
    ],
)
def test_a_figure_is_filled_in_from_its_report(root: Path, reference: str, value: str) -> None:
    text = f"It takes <!-- figure: {reference} -->?<!-- /figure -->, twice."
    once = figures.refreshed(text, "a.md")
    assert once == f"It takes <!-- figure: {reference} -->{value}<!-- /figure -->, twice."
    assert figures.refreshed(once, "a.md") == once


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("none.json#/rows", "there is no none.json"),
        ("out.json#/rows/2/value", "has no /rows/2/value"),
        ("out.json#/rows/nothing/value", "at 'nothing'"),
        ("out.json#/rows/0", "no single value"),
        ("out.json#/rows/0/value/more", "at 'more'"),
    ],
)
def test_a_figure_that_is_not_there_is_an_error(root: Path, reference: str, complaint: str) -> None:
    with pytest.raises(figures.FigureError, match=f"a.md: .*{complaint}"):
        figures.refreshed(f"<!-- figure: {reference} --><!-- /figure -->", "a.md")


@pytest.mark.parametrize(
    "path", list(figures.documents()), ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_figures_in_the_documents_are_those_of_the_reports(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert figures.refreshed(text, path.name) == text, "run `make figures`"
    written, shown = text.count("<!-- figure:"), text.count("`<!-- figure:")
    assert written - shown == len(figures.FIGURE.findall(text)), "a broken figure"


def test_the_page_of_commands_is_theirs() -> None:
    pages = load("cli_docs")
    assert pages.FILE.read_text(encoding="utf-8") == pages.page(), "run `make docs`"


def test_the_constraints_are_what_is_installed_here() -> None:
    constraints = load("constraints")
    versions = constraints.closure(constraints.asked_for(constraints.EXTRAS))
    pinned = dict(
        line.split("==")
        for line in constraints.FILE.read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    assert len(pinned) > 50
    assert {name: pinned.get(name) for name in versions} == versions, "run `make constraints`"
