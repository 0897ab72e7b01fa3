"""The tutorial, followed to the letter by somebody who has nothing but the installation."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interlatent_live.config import Settings, on_free_ports

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
TEXT = PAGE.read_text(encoding="utf-8")
(AGENT,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line[2:] for line in TEXT.splitlines() if line.startswith("$ ")]


class Reader:
    """A terminal in a folder of its own, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = on_free_ports(Settings())
        endpoint = settings.endpoints.agents
        # The one thing that differs from the page: other tests may hold the default port.
        agent = AGENT.replace('agent="my-cartpole"', f'agent="my-cartpole", endpoint="{endpoint}"')
        assert agent != AGENT
        (folder / "agent.py").write_text(agent, encoding="utf-8")
        self.environment = {
            **os.environ,
            **{
                name: value
                for name, value in settings.environment().items()
                if "ENDPOINTS__" in name or name.endswith("CONSOLE__HTTP")
            },
            "INTERLATENT_CONSOLE__STATE": str(folder / "state"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            shlex.split(command),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, timeout_s: float = 240.0) -> str:
        process = self.start(command)
        said, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, f"{command}: {said}"
        return said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_newcomer_gets_verified_claims_by_following_the_page(tmp_path):
    (tmp_path / "state").mkdir(mode=0o700)
    reader = Reader(tmp_path)
    collect, train, up, act, claims, query = COMMANDS
    reader.run(collect)
    trained = re.search(r"FVU ([\d.]+) \(affine ([\d.]+)\)", reader.run(train))
    assert trained is not None
    assert float(trained[1]) < float(trained[2])
    services = reader.start(up)
    try:
        deadline = time.monotonic() + 120
        while subprocess.run(
            ["interlatent-live", "health"],
            env=reader.environment,
            capture_output=True,
            check=False,
        ).returncode:
            assert services.poll() is None, services.communicate()[0]
            assert time.monotonic() < deadline
        reader.run(act)
        deadline = time.monotonic() + 60
        while "verified" not in (listed := reader.run(claims)):
            assert time.monotonic() < deadline, listed
            time.sleep(1)
        found = reader.run(query)
    finally:
        services.send_signal(signal.SIGINT)
        services.communicate(timeout=60)
    assert re.search(r"2\.\.3/\d+ +verified", listed)
    assert re.search(r"pole|cart|tip", listed)
    assert re.search(r"2\.\.3: 20000 rows, 0 left out, 0 missing", found)
