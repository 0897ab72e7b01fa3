"""Each example runs as it is written, and its steps arrive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .service import Service, until

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "steps", "hook", "width"),
    [
        ("attach_plain_loop", 200, "0", 4),
        ("attach_vectorised_loop", 400, "0", 4),
        ("attach_sb3", 128, "mlp_extractor.policy_net.2", 64),
        ("publish_without_torch", 200, "layer", 3),
    ],
)
def test_the_example_streams(name, steps, hook, width):
    with Service() as service:
        command = [
            sys.executable,
            "-W",
            "error",
            EXAMPLES / f"{name}.py",
            service.endpoint,
            str(steps),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, result.stderr
        runs = 2 if name == "attach_sb3" else 1
        assert until(lambda: len(service.goodbyes) == runs)
        for goodbye in service.goodbyes.values():
            assert goodbye.acknowledged + sum(goodbye.lost.values()) == goodbye.sent
            assert goodbye.lost == {}
    x = service.column(f"x:{hook}")
    assert x.shape[1] == width
    # The reset calls of the vector example are no steps.
    assert (0.85 if "vector" in name else 1.0) * steps * runs <= len(x) <= steps * runs
