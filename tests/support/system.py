"""The whole system as real processes on free ports, for tests, and an agent without torch."""

import os
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from interlatent_live.agent.tap import Tap
from interlatent_live.config import Settings, on_free_ports, resolve
from interlatent_live.engine.launch import service_specs
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import Phase, wait_ready
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.state import FeedState
from interlatent_live.stream import HookPointSpec, MetricSpec, Role
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.native import Provenance, save_transcoder
from interlatent_live.transcoders.transcoder import Transcoder

POLICY = "sha256:" + "5" * 64
HOOK = "net.0"
D_IN, D_OUT, FEATURES = 8, 8, 32


def transcoder(seed=0) -> Transcoder:
    random = torch.Generator().manual_seed(seed)
    return Transcoder(
        config=TranscoderConfig(
            architecture=Architecture.JUMPRELU, d_in=D_IN, d_out=D_OUT, n_features=FEATURES, k=4
        ),
        W_enc=torch.randn(D_IN, FEATURES, generator=random),
        b_enc=torch.zeros(FEATURES),
        W_dec=torch.randn(FEATURES, D_OUT, generator=random),
        b_dec=torch.zeros(D_OUT),
        threshold=torch.full((FEATURES,), 3.0),
    )


def save(folder: Path, one: Transcoder, policy_hash=POLICY, hook_point=HOOK) -> Path:
    provenance = Provenance(policy_hash=policy_hash, hook_point=hook_point)
    return save_transcoder(folder / hook_point, one, provenance)


class System:
    """Encoder, correlator, explainer and console under an engine, watched by a feed client.

    What the console keeps is in a folder of its own, unless ``console.state`` names one;
    ``without`` names services that a test starts itself.
    """

    def __init__(self, *, without=(), **flags):
        self._without = without
        self._state_folder = tempfile.TemporaryDirectory(prefix="interlatent-system-")
        base = resolve(
            flags={
                "logging.level": "warning",
                "explainer.null_draws": 99,
                "console.state": self._state_folder.name,
                **flags,
            },
            environment={},
        ).settings
        self.settings: Settings = on_free_ports(base)
        self.state = FeedState()
        self.lines: list[str] = []
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        engine = LocalEngine(on_line=lambda line: self.lines.append(line.text))
        self.engine = self._stack.enter_context(engine)
        specs = [one for one in service_specs(self.settings) if one.name not in self._without]
        for spec in specs:
            self.engine.start(spec)
        wait_ready(self.engine, [spec.name for spec in specs], 120)
        self._watcher.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._watcher.join()
        self._stack.close()
        self._state_folder.cleanup()

    def _watch(self):
        with FeedClient(self.settings.endpoints.feeds()) as client:
            while not self._stop.is_set():
                for event in client.events(0.05):
                    self.state.take(event)

    def wait(self, condition, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = condition(self.state)
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout_s} s; last words: {self.lines[-5:]}")

    def pid(self, name):
        (status,) = [one for one in self.engine.status() if one.name == name]
        return status.pid

    def kill(self, name):
        """SIGKILL a service and wait until the supervisor has brought it back."""
        before = self.pid(name)
        os.kill(before, signal.SIGKILL)
        self.wait(lambda _: self._is_back(name, before))

    def _is_back(self, name, before):
        (status,) = [one for one in self.engine.status() if one.name == name]
        return status.phase is Phase.READY and status.pid not in (None, before)

    def tap(self, **options) -> Tap:
        return Tap(
            [MetricSpec("phase", "rad", Role.STATE), MetricSpec("push", "N", Role.ACTION)],
            agent="walker",
            endpoint=self.settings.endpoints.agents,
            policy_hash=POLICY,
            hook_points=(HookPointSpec(HOOK, D_IN, D_OUT),),
            y_every=1,
            **options,
        )


class Walker:
    """An agent that only publishes: activations from a seeded generator, episodes of 100 steps."""

    def __init__(self, tap: Tap, seed=0):
        self.tap = tap
        self.random = np.random.default_rng(seed)
        self.steps = 0
        self.times_us: list[float] = []
        self.xs: list[np.ndarray] = []

    def walk(self, steps, hz=1000.0):
        due = time.perf_counter()
        for _ in range(steps):
            x = self.random.normal(size=D_IN).astype(np.float32)
            self.xs.append(x)
            phase = self.steps % 100
            began = time.perf_counter()
            self.tap.publish(
                [phase / 100, float(x[0])],
                x={HOOK: x},
                y={HOOK: x[:D_OUT]},
                terminated=phase == 99,
            )
            self.times_us.append((time.perf_counter() - began) * 1e6)
            self.steps += 1
            due += 1 / hz
            time.sleep(max(0.0, due - time.perf_counter()))
