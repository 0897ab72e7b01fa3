"""A policy and an environment that the project has never seen attach in under 20 lines."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from interlatent_live.environments.metric_packs import FAMILIES
from interlatent_live.policies.files import built_in_policies
from interlatent_live.stream import Role
from interlatent_live.zoo.entry import entries
from tests.agent.service import Service, until

FOLDER = Path(__file__).parent / "unseen"
ENVIRONMENT = "BipedalWalker-v3"
STEPS = 300


def test_the_zoo_has_never_seen_it():
    assert ENVIRONMENT not in FAMILIES
    assert all(entry.environment != ENVIRONMENT for entry in entries())
    assert "bipedalwalker" not in built_in_policies()


def test_it_attaches_in_under_twenty_lines_and_every_step_arrives():
    pytest.importorskip("Box2D")
    code = (FOLDER / "act.py").read_text(encoding="utf-8").partition('"""\n\n')[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    with Service() as service:
        # Box2D's SWIG types warn while they are made.
        command = [sys.executable, FOLDER / "act.py", service.endpoint, FOLDER / "bipedalwalker"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert until(lambda: len(service.goodbyes) == 1)
        (goodbye,) = service.goodbyes.values()
        assert goodbye.lost == {}
        assert goodbye.acknowledged == goodbye.sent == STEPS
        (manifest,) = service.manifests.values()
    assert manifest.policy_hash.startswith("sha256:")
    states = [spec.name for spec in manifest.metrics if spec.role is Role.STATE]
    assert len(states) >= 24  # every number of the observation, without a name of its own
    x = service.column("x:hidden.1")
    assert x.shape == (STEPS, 64)
    assert np.isfinite(x).all()
    assert x.std() > 0.05
