"""Code in the documents: it parses, what it imports exists, and what stands on its own is run."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from interlatent_live.statistics.rules import AlertRule, AlertState, Condition
from interlatent_live.stream import MetricSpec, Role
from tests.statistics.streams import codes_from_dense, steps_of

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = {
    f"{path.relative_to(ROOT)}-{number}": code
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    for number, code in enumerate(BLOCK.findall(path.read_text(encoding="utf-8")))
}
ELSEWHERE = {
    "docs/api.md-0": "test_api_example.py runs it",
    "docs/tutorial.md-0": "test_tutorial.py runs it",
    "docs/explanations.md-0": "tests/agent/test_shadow.py makes this call, with a real explainer",
    "docs/oversight.md-0": "tests/agent/test_control.py makes this call, with a real service",
    "docs/statistics.md-2": "tests/services/test_statistics_service.py asks a real correlator",
}


@pytest.mark.parametrize("where", BLOCKS)
def test_code_parses_and_what_it_imports_exists(where):
    for node in ast.walk(ast.parse(BLOCKS[where])):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{where}: {node.module}.{name.name}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)


def test_every_block_is_run_or_says_where():
    assert {*RUN, *ELSEWHERE} == {*BLOCKS}


def _statistics() -> dict[str, Any]:
    random = np.random.default_rng(0)
    metrics = random.normal(size=(400, 1))
    dense = np.zeros((400, 512))
    dense[:, 17] = np.maximum(metrics[:, 0], 0)
    batch = SimpleNamespace(steps=steps_of(metrics), codes={"layer2": codes_from_dense(dense)})
    manifest = SimpleNamespace(metrics=(MetricSpec("pole_angle", "rad", Role.STATE),))
    return {"manifest": manifest, "stream": [batch], "boot_base": 0}


RUN = {
    "README.md-0": dict,
    "docs/encoding.md-0": dict,
    "docs/statistics.md-0": _statistics,
    "docs/statistics.md-1": lambda: {
        "AlertRule": AlertRule,
        "AlertState": AlertState,
        "Condition": Condition,
        "run_id": "run",
        "now_ns": 10**18,
    },
}


@pytest.mark.parametrize("where", RUN)
def test_what_stands_on_its_own_runs(where):
    names: dict[str, Any] = RUN[where]()
    exec(compile(BLOCKS[where], where, "exec"), names)  # noqa: S102 - our own documents
    if where == "docs/statistics.md-0":
        assert names["item"].r > 0.5
