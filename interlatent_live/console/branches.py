"""Counterfactual branches for the page: the documents of ``interlatent-live branch``, and new ones.

Documents are read from one folder, checked against what the command writes, and shown with what
differs. One moment is an example; where the same intervention was played from several moments, the
paired differences of their returns get Student's interval, and only then.

An operator may have new ones played. What is run is the command itself, in a process of the lowest
priority, one at a time, for a policy that comes with the package and has the very hash of the agent
that is looked at, with a transcoder that the encoder knows: nothing that a request says is run or
opened. Who asked for what is in an audit of its own before anything runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from interlatent_live.audit.log import AuditLog
from interlatent_live.console.folders import plain_files
from interlatent_live.engine.port import service_command
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Kind
from interlatent_live.statistics.effective_n import t_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUFFIX: Final = ".json"
LARGEST: Final = 8 * 2**20
"""Bytes of one document."""
MOST: Final = 500
MOST_MOMENTS: Final = 32
CONFIDENCE: Final = 0.95
FEWEST: Final = 8
"""Moments from which on an interval is said."""
WITHIN_S: Final = 300.0
"""Of one moment."""
NICE: Final = 19
AUDIT: Final = "audit"
Text = Annotated[str, Meta(max_length=400)]
Numbers = Annotated[list[float | None], Meta(max_length=200_000)]


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two: what happened on it, step by step."""

    steps: int
    ended: Text
    rewards: Annotated[list[float], Meta(max_length=200_000)]
    actions: Annotated[list[list[float]], Meta(max_length=200_000)]
    metrics: dict[Text, Numbers]
    total: float = msgspec.field(name="return")


class BranchDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What the command writes."""

    policy: Text
    policy_hash: Text
    environment: Text
    intervention: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=64)]
    lasts: int | None
    cloned: Text
    seed: int
    at: int
    first_other_action: int | None
    metrics: list[Text]
    branches: dict[str, Branch]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How far one metric comes to differ, with minus without, over the steps that both have."""

    metric: str
    first: int | None
    """Step after the moment at which it first differs."""
    mean: float | None
    largest: float | None
    """Of the differences the one that is largest by size."""
    largest_at: int | None


class BranchFolder:
    """The documents of one folder.

    Args:
        folder: need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._read: dict[str, tuple[int, int, dict[str, Any]]] = {}

    def names(self) -> list[str]:
        """Plain files of the folder itself, newest first."""
        return plain_files(self.path, SUFFIX, MOST)

    def listing(self) -> dict[str, Any]:
        """Every document in a few words; and, over moments, what the same intervention did."""
        items = [self._summary(name) for name in self.names()]
        self._read = {one["name"]: self._read[one["name"]] for one in items}
        return {"items": items, "together": _together(items)}

    def document(self, name: str) -> dict[str, Any]:
        """One document with what differs.

        Raises:
            UserError: when there is none of this name, or it is no such document.
        """
        if name not in self.names():
            raise UserError(f"there is no branch {name[:100]!r} in the console's folder")
        one = self._load(name)
        found: dict[str, Any] = msgspec.to_builtins(one)
        return found | {"name": name, "differences": msgspec.to_builtins(differences(one))}

    def _load(self, name: str) -> BranchDocument:
        path = self.path / name
        try:
            if path.stat().st_size > LARGEST:
                raise UserError(f"{name} is larger than a branch may be ({LARGEST} bytes)")
            one = msgspec.json.decode(path.read_bytes(), type=BranchDocument)
        except (OSError, msgspec.MsgspecError) as error:
            raise UserError(f"{name} is no document of interlatent-live branch: {error}") from None
        if set(one.branches) != {"without", "with"}:
            raise UserError(f"{name} is no document of interlatent-live branch: its branches")
        return one

    def _summary(self, name: str) -> dict[str, Any]:
        try:
            state = (self.path / name).stat()
            size, modified = state.st_size, state.st_mtime_ns
        except OSError:
            size, modified = 0, 0
        known = self._read.get(name)
        if known is None or known[:2] != (size, modified):
            known = (size, modified, self._summed(name) | {"modified_ns": modified})
            self._read[name] = known
        return known[2]

    def _summed(self, name: str) -> dict[str, Any]:
        try:
            one = self._load(name)
        except UserError as error:
            return {"name": name, "problem": str(error)}
        return {
            "name": name,
            "problem": "",
            "policy": one.policy,
            "policy_hash": one.policy_hash,
            "environment": one.environment,
            "intervention": one.intervention,
            "words": in_words(one.intervention),
            "lasts": one.lasts,
            "seed": one.seed,
            "at": one.at,
            "first_other_action": one.first_other_action,
            "without": one.branches["without"].total,
            "with": one.branches["with"].total,
        }


def in_words(intervention: Sequence[dict[str, Any]]) -> str:
    """An intervention in a few words, such as ``steer hidden.1/12 by 2``."""
    parts = []
    for item in intervention:
        value = "" if item.get("kind") == "ablate" else f" {item.get('value')}"
        condition = item.get("condition")
        when = f" while feature {condition.get('feature')} is on" if condition else ""
        parts.append(
            f"{item.get('kind')} {item.get('hook_point')}/{item.get('feature')}{value}{when}"
        )
    return ", ".join(parts)[:400]


def differences(one: BranchDocument) -> list[Difference]:
    """Of each metric; the one that differs most, in units of its own spread, first."""
    found = []
    for metric in one.metrics:
        sides = [
            np.array(one.branches[name].metrics.get(metric, []), np.float64)
            for name in ("without", "with")
        ]
        n = min(len(side) for side in sides)
        apart = sides[1][:n] - sides[0][:n]
        known = np.isfinite(apart)
        if not known.any():
            item = Difference(metric=metric, first=None, mean=None, largest=None, largest_at=None)
            found.append((0.0, item))
            continue
        at = int(np.nanargmax(np.abs(apart)))
        other = np.flatnonzero(known & (apart != 0))
        spread = float(np.nanstd(np.concatenate(sides)))
        item = Difference(
            metric=metric,
            first=int(other[0]) if len(other) else None,
            mean=float(apart[known].mean()),
            largest=float(apart[at]),
            largest_at=at,
        )
        found.append((abs(float(apart[at])) / (spread or 1.0), item))
    found.sort(key=lambda pair: -pair[0])
    return [item for _, item in found]


def _together(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Paired differences of the return by intervention, each moment once."""
    groups: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for one in items:
        if not one["problem"]:
            same = [one["policy_hash"], one["environment"], one["intervention"], one["lasts"]]
            key = json.dumps(same, sort_keys=True)
            groups.setdefault(key, {})[one["seed"], one["at"]] = one
    out = []
    for moments in groups.values():
        first = next(iter(moments.values()))
        apart = np.array([one["with"] - one["without"] for one in moments.values()])
        n = len(apart)
        half = None
        if n >= FEWEST:
            error = float(apart.std(ddof=1)) / math.sqrt(n)
            half = float(t_quantile(CONFIDENCE, float(n - 1))) * error
        mean = float(apart.mean())
        out.append(
            {
                "policy": first["policy"],
                "words": first["words"],
                "moments": n,
                "mean": mean,
                "low": None if half is None else mean - half,
                "high": None if half is None else mean + half,
                "reason": "" if half is not None else f"{n} moments; an interval needs {FEWEST}",
            }
        )
    return sorted(out, key=lambda one: -one["moments"])


# -- new ones --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operator asks for.

    Raises:
        UserError: when a number means nothing.
    """

    policy_hash: str
    transcoder: str
    hook_point: str
    feature: int
    kind: Kind
    value: float
    while_on: bool
    seed: int
    moments: int
    at: int
    steps: int
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise UserError("say why: the reason is kept in the audit")
        if not math.isfinite(self.value) or (self.kind is Kind.CLAMP and self.value < 0):
            raise UserError(f"{self.kind.value} needs a finite value, and clamp one of at least 0")
        if not 1 <= self.moments <= MOST_MOMENTS:
            raise UserError(f"between 1 and {MOST_MOMENTS} moments can be played at once")


class BusyError(UserError):
    """Another one is being played."""


class BranchJobs:
    """Plays branches for operators, one job at a time.

    Args:
        folder: where the documents go; its ``audit`` says who asked.
        policies: folder of the policies that come with the package.
        transcoders: folders that the encoder searches, and those of the package.
    """

    def __init__(self, folder: Path, policies: Path, transcoders: Sequence[Path]) -> None:
        self._folder = folder
        self._policies = policies
        self._transcoders = tuple(transcoders)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self._state: dict[str, Any] = {
            "running": False,
            "words": "",
            "done": 0,
            "of": 0,
            "problem": "",
        }

    def state(self) -> dict[str, Any]:
        """The job that runs, or ran last."""
        return dict(self._state)

    def start(self, wanted: Wanted, actor: str) -> dict[str, Any]:
        """Begin; the audit has it on the disk when this returns.

        Raises:
            BusyError: while another job runs.
            UserError: when no policy or transcoder of this hash is at hand, or the audit cannot be
                written.
        """
        policy, transcoder = self._policy(wanted), self._transcoder(wanted)
        words = f"{wanted.kind.value} {wanted.hook_point}/{wanted.feature} {wanted.value:g}"
        with self._lock:
            if self._state["running"] or self._closed:
                raise BusyError("branches are being played already; wait until they are done")
            self._folder.mkdir(parents=True, exist_ok=True)
            self._log("branch-commanded", actor, wanted, policy)
            self._state = {
                "running": True, "words": words, "done": 0, "of": wanted.moments, "problem": "",
            }  # fmt: skip
            self._thread = threading.Thread(
                target=self._run, args=(wanted, actor, policy, transcoder), daemon=True
            )
            self._thread.start()
        return self.state()

    def close(self) -> None:
        """End what runs."""
        self._closed = True
        process = self._process
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()
        if self._thread is not None:
            self._thread.join(10)

    def _log(self, kind: str, actor: str, wanted: Wanted, policy: str, outcome: str = "") -> None:
        body = {
            "actor": actor, "agent": policy, "operation": "branch", "reason": wanted.reason,
            "policy_hash": wanted.policy_hash, "transcoder": wanted.transcoder,
            "hook_point": wanted.hook_point, "feature": wanted.feature,
            "change": wanted.kind.value, "value": wanted.value, "while_on": wanted.while_on,
            "seed": wanted.seed, "moments": wanted.moments, "at": wanted.at,
            "steps": wanted.steps, "detail": outcome,
        }  # fmt: skip
        with AuditLog(self._folder / AUDIT) as audit:
            audit.append(kind, body)

    def _policy(self, wanted: Wanted) -> str:
        for path in sorted(self._policies.glob("*/policy.json")):
            if _field(path, "policy_hash") == wanted.policy_hash:
                return path.parent.name
        raise UserError(
            "this agent's policy is none of those that come with the package, and the console "
            "loads no other: use `interlatent-live branch` where the policy is"
        )

    def _transcoder(self, wanted: Wanted) -> Path:
        for folder in self._transcoders:
            for path in sorted(folder.glob("**/transcoder.json"))[:1000]:
                if _field(path, "identity") == wanted.transcoder:
                    return path.parent
        raise UserError(f"no folder of the encoder has the transcoder {wanted.transcoder[:80]}")

    def _run(self, wanted: Wanted, actor: str, policy: str, transcoder: Path) -> None:
        problem = ""
        for i in range(wanted.moments):
            problem = self._play(wanted, policy, transcoder, wanted.seed + i)
            if problem or self._closed:
                break
            self._state = self._state | {"done": i + 1}
        outcome = problem or f"{self._state['done']} of {wanted.moments} played"
        try:
            self._log("branch-played", actor, wanted, policy, outcome)
        except UserError as error:
            problem = problem or str(error)
        self._state = self._state | {"running": False, "problem": problem}

    def _play(self, wanted: Wanted, policy: str, transcoder: Path, seed: int) -> str:
        """Play one moment; returns what went wrong."""
        stem = re.sub(r"[^\w.-]", "_", f"{policy}-{wanted.hook_point}-{wanted.feature}")
        name = f"{stem}-{wanted.kind.value}-{wanted.value:g}-seed{seed}-at{wanted.at}"
        name += "-while-on" if wanted.while_on else ""
        change = (
            ["--ablate"]
            if wanted.kind is Kind.ABLATE
            else [f"--{wanted.kind.value}", repr(wanted.value)]
        )
        command = service_command(
            "branch", policy, "--transcoder", str(transcoder), "--feature", str(wanted.feature),
            *change, *(["--while-on"] if wanted.while_on else []), "--seed", str(seed),
            "--at", str(wanted.at), "--steps", str(wanted.steps), "--no-plot",
            "--out", str(self._folder / f"{name}{SUFFIX}"),
        )  # fmt: skip
        self._process = subprocess.Popen(  # noqa: S603 - our own command, and numbers
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)
        try:
            _, said = self._process.communicate(timeout=WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return f"a moment took longer than {WITHIN_S:g} s"
        if self._process.returncode == 0:
            return ""
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:400] if lines else f"it ended with status {self._process.returncode}"


def _field(path: Path, name: str) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(found.get(name, "")) if isinstance(found, dict) else ""
