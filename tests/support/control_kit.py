"""An agent under control for tests: a small policy with its transcoder, commands, and an operator's
end of the agent's connection."""

import itertools
import threading
import time

import numpy as np
import torch
import zmq
from torch import nn

from interlatent_live.agent.attach import attach
from interlatent_live.agent.control import ControlOptions
from interlatent_live.control.commands import Change, Command, Operation
from interlatent_live.control.wire import (
    AgentAnswer,
    AgentEvents,
    AgentHello,
    AgentState,
    Do,
    Envelope,
    EventsKept,
    Way,
)
from interlatent_live.interventions.values import Intervention, Kind
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.stream import MetricSpec
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.native import LoadedTranscoder, Provenance
from interlatent_live.transcoders.transcoder import Transcoder

KEY = b"k" * 32
HOOK = "first"
SECOND = 1_000_000_000
STEP_S = 0.005
METRICS = [MetricSpec("position"), MetricSpec("tilt", "rad")]
_ids = itertools.count()


class TwoLayers(nn.Module):
    """obs [n, 2] → first [n, 4] → action [n, 2]."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(2, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, obs):
        return self.second(torch.tanh(self.first(obs)))


def loaded(policy, hook=HOOK, path=None):
    module = policy.get_submodule(hook)
    random = torch.Generator().manual_seed(1)
    made = Transcoder(
        config=TranscoderConfig(
            architecture=Architecture.RELU, d_in=module.in_features, d_out=module.out_features,
            n_features=8, l1=0.0,
        ),
        W_enc=torch.randn(module.in_features, 8, generator=random),
        b_enc=torch.full((8,), 0.1),
        W_dec=torch.randn(8, module.out_features, generator=random),
        b_dec=torch.zeros(module.out_features),
    )  # fmt: skip
    provenance = Provenance(policy_hash=policy_hash(policy), hook_point=hook)
    return LoadedTranscoder(made, provenance, path)


def controlled(policy, folder, *, endpoint=None, stream=None, env_count=1, **options):
    """A tap with control; nothing is streamed unless ``stream`` names an encoder."""
    given = {
        "endpoint": endpoint,
        "safe_action": np.zeros(2, np.float32),
        "transcoders": {HOOK: loaded(policy)},
        "max_norm": {HOOK: 5.0},
        "state": folder,
        "key": KEY,
        **options,
    }
    return attach(
        policy, [HOOK], METRICS, endpoint=stream, agent="walker", env_count=env_count,
        autoreset="disabled", control=ControlOptions(**given), strict=True,
    )  # fmt: skip


class Loop:
    """The agent's own loop: forward, gate, step."""

    def __init__(self, policy, tap, copies=1):
        self.policy, self.tap, self.copies = policy, tap, copies
        self.random = np.random.default_rng(0)
        self.obs = np.zeros((copies, 2), np.float32)
        self.forward = policy

    def step(self, metrics=(0.0, 0.0)):
        """One step; returns the policy's action and the one that was taken, both [copies, 2]."""
        self.obs = self.random.normal(size=(self.copies, 2)).astype(np.float32)
        with torch.no_grad():
            meant = self.forward(torch.from_numpy(self.obs)).numpy()
        taken = self.tap.control.gate(meant)
        ends = np.zeros(self.copies, bool) if self.copies > 1 else False
        rows = np.tile(metrics, (self.copies, 1)) if self.copies > 1 else np.asarray(metrics)
        self.tap.step(rows, terminated=ends, truncated=ends)
        return meant, taken


class SteppingAgent:
    """Steps in a thread of its own, as an agent does, until it is closed; says when it last moved.

    ``open_tap(policy)`` is called in that thread.
    """

    def __init__(self, open_tap):
        self.policy = TwoLayers()
        self.moved_at = 0.0
        self._open_tap = open_tap
        self._ready, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def _run(self):
        with self._open_tap(self.policy) as tap:
            tap.move_to_this_thread()
            self.tap = tap
            loop = Loop(self.policy, tap)
            self._ready.set()
            while not self._stopping.is_set():
                _, taken = loop.step()
                if (taken != 0).any():
                    self.moved_at = time.monotonic()
                time.sleep(STEP_S)

    def close(self):
        self._stopping.set()
        self._thread.join(10)


def agent_of(service, folder, **options):
    """An agent that steps under a control service, with a state folder of its own."""
    return SteppingAgent(
        lambda policy: controlled(
            policy, folder, endpoint=service.settings.endpoints.control, key=service.key,
            **{"lease_s": 1.0, **options},
        )
    )  # fmt: skip


def steer(feature=0, kind=Kind.STEER, value=1.0, norm=5.0, *, policy, hook=HOOK, **more):
    value = 0.0 if kind is Kind.ABLATE else value
    identity = loaded(policy, hook).transcoder.identity
    return Change(hook, identity, Intervention(feature, kind, value, **more), norm)


def command(operation, *, ttl=5.0, **fields):
    fields.setdefault("lease", "L")
    fields.setdefault("command_id", f"c{next(_ids)}")
    return Command(
        operation=operation, actor="ada", reason="a test", ttl_ns=int(ttl * SECOND), **fields
    )


class Overseer:
    """The service's end of agents' connections, without the service."""

    def __init__(self, key=KEY, endpoint="tcp://127.0.0.1:*"):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.envelope = Envelope(key, out=Way.TO_AGENT, into=Way.FROM_AGENT)
        self.peer = b""
        self.hello: AgentHello | None = None
        self.state: AgentState | None = None
        self.answers: dict[str, AgentAnswer] = {}
        self.events = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()
        self.context.term()

    def look(self, timeout_s=0.0):
        """Take in what came."""
        while self.socket.poll(int(timeout_s * 1000)):
            self.peer, *frames = self.socket.recv_multipart()
            match message := self.envelope.open(frames):
                case AgentHello():
                    self.hello = message
                case AgentState():
                    self.state = message
                case AgentAnswer():
                    self.answers[message.command_id] = message
                case AgentEvents():
                    self.events += [one for one in message.events if one not in self.events]
            timeout_s = 0.0

    def until(self, condition, meanwhile=lambda: time.sleep(0.001), timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.look()
            found = condition()
            if found:
                return found
            meanwhile()
        raise AssertionError(f"not within {timeout_s} s; state {self.state}")

    def send(self, message):
        self.socket.send_multipart([self.peer, *self.envelope.seal(message)])

    def do(self, made, boot_id=None, meanwhile=lambda: time.sleep(0.001)):
        """Send a command and wait for its answer."""
        boot = self.hello.boot_id if boot_id is None else boot_id
        self.send(Do(boot_id=boot, command=made, seal="ab"))
        return self.until(lambda: self.answers.get(made.command_id), meanwhile)

    def renew(self, lease="L"):
        return self.do(command(Operation.RENEW, lease=lease, ttl=60.0))

    def keep(self, number):
        self.send(EventsKept(boot_id=self.hello.boot_id, number=number))

    def event(self, command_id, fate):
        for one in self.events:
            if (one.command_id, one.fate) == (command_id, fate):
                return one
        return None
