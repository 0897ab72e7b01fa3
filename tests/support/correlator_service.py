"""A correlator as a real process, and an encoder's end of the link that feeds it."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

from interlatent_live.config import on_free_ports, resolve
from interlatent_live.services.network import Network
from interlatent_live.services.sending import FeatureSender
from interlatent_live.wire.codec import encode_features
from tests.support.planted_stream import HOOK, TRANSCODER, manifest


class CorrelatorProcess:
    """``interlatent-live correlator`` on free ports; may be killed and started again."""

    def __init__(self, **flags):
        base = resolve(flags={"logging.level": "warning", **flags}, environment={}).settings
        self.settings = on_free_ports(base)
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.stop()

    def start(self, within_s=60.0):
        environment = {**os.environ, **self.settings.environment(), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "interlatent_live", "correlator"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + within_s
        address = f"http://{self.settings.endpoints.correlator_health}/healthz"
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(address, timeout=1) as answer:
                if answer.status == 200:
                    return
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.05)
        raise AssertionError("the correlator was not ready in time")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.process.stderr.close()

    def stop(self):
        """SIGTERM; returns what it said."""
        if self.process.poll() is None:
            self.process.terminate()
        said = self.process.communicate(timeout=30)[1] if not self.process.stderr.closed else ""
        assert "Traceback" not in said, said
        return said


class Feeder:
    """Sends feature batches as an encoder does."""

    def __init__(self, endpoint, said=None):
        self.manifest = said or manifest()
        self.network = Network(None)
        self.network.__enter__()
        self.sender = FeatureSender(self.network, endpoint, 64 << 20)
        self.open_at(0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.sender.close()
        self.network.__exit__(None, None, None)

    def open_at(self, seq):
        self.sender.open_stream(self.manifest, {HOOK: TRANSCODER}, seq)

    def offer(self, batch):
        self.sender.offer(batch, encode_features(batch))

    def send(self, batches, within_s=60.0):
        """Send everything and wait until it was acknowledged."""
        for batch in batches:
            self.offer(batch)
            self.turn()
        deadline = time.monotonic() + within_s
        while self.pending() and time.monotonic() < deadline:
            self.turn(0.005)
        assert not self.pending(), "not acknowledged in time"

    def pending(self):
        boot = self.manifest.boot_id
        return self.sender.queued_bytes or self.sender.link.counts(boot).in_flight

    def turn(self, pause_s=0.0):
        if pause_s:
            time.sleep(pause_s)
        self.sender.receive()
        self.sender.tick()

    def end(self):
        self.sender.end_stream(self.manifest.boot_id, 2.0)
        deadline = time.monotonic() + 3.0
        while self.manifest.boot_id in self.sender.link.boot_ids():
            assert time.monotonic() < deadline
            self.turn(0.005)
