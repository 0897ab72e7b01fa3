"""A control service as a real process, on free ports, with a state folder of its own."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

from interlatent_live.config import CONFIG_VARIABLE, on_free_ports, resolve
from interlatent_live.console.secrets import load_token, state_folder
from interlatent_live.control.client import ControlClient
from interlatent_live.control.wire import Role, control_key


class ControlService:
    """Start, kill and start again on the same ports."""

    def __init__(self, folder, **flags):
        folder.mkdir(mode=0o700, exist_ok=True)
        flags = {"console.state": str(folder), "logging.level": "warning", **flags}
        self.settings = on_free_ports(resolve(flags=flags, environment={}).settings)
        self.key = control_key(load_token(state_folder(self.settings)))
        self.audit = folder / "audit"
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        if self.process is not None:
            self.end(signal.SIGTERM)

    def start(self):
        environment = {**os.environ, **self.settings.environment(), CONFIG_VARIABLE: ""}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "interlatent_live", "control"], env=environment
        )
        deadline = time.monotonic() + 60
        url = f"http://{self.settings.endpoints.control_health}/healthz"
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(url, timeout=1) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the control service did not start")

    def end(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(20)
        self.process = None

    def client(self, actor="ada", role=Role.OPERATOR, **more):
        return ControlClient(
            self.settings.endpoints.control_requests, more.pop("key", self.key), actor=actor,
            role=role, **more,
        )  # fmt: skip
