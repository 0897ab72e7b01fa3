"""The encoder service without its sockets: who is admitted, what is encoded when, what is counted.

The shell feeds it manifests and step batches as they arrive and the time; it takes feature batches
out. Which transcoder may read which policy is decided here, once, when an agent says hello.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from interlatent_live.encoding.micro_batching import BatchLimits, Joiner, MicroBatcher, Request
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.feed.documents import AgentStatus, HookPointStatus, Percentiles
from interlatent_live.pipeline.gathering import joined_codes
from interlatent_live.pipeline.latency import LatencyHistogram
from interlatent_live.stream import (
    Activations,
    FeatureBatch,
    Manifest,
    SparseCodes,
    StepBatch,
    StepFlag,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from interlatent_live.encoding.micro_batching import Batch
    from interlatent_live.stream import HookPointSpec

RATE_HALF_LIFE_S = 2.0
SUMMED_AT_ONCE = 64
RUNS_SHOWN = 256
"""Ended runs kept in the status; the oldest are forgotten beyond it."""
OVERLOAD = "encoder_overload"
"""Reason under which steps are declared lost that the encoder had no room to keep waiting."""


class TranscoderLike(Protocol):
    """What the encoder needs to know of a transcoder; the encode function knows the rest."""

    @property
    def identity(self) -> str:
        """Content hash, ``sha256:…``."""
        ...

    @property
    def n_features(self) -> int:
        """Width of the dictionary."""
        ...

    @property
    def d_in(self) -> int:
        """Width of x."""
        ...

    @property
    def d_out(self) -> int:
        """Width of y."""
        ...

    @property
    def feature_names(self) -> Mapping[int, str]:
        """Names of features that have one by construction: attached probes."""
        ...


class Library(Protocol):
    """Where transcoders are found, by the policy they were trained on."""

    def find(self, policy_hash: str, hook_point: str) -> TranscoderLike | None:
        """The newest transcoder for this policy at this hook point."""
        ...

    def policies(self) -> Mapping[str, tuple[str, ...]]:
        """Hook points by policy hash: what there is, for a refusal that helps."""
        ...


class Encode(Protocol):
    """Activations to codes, on whatever device."""

    def __call__(self, transcoder: TranscoderLike, activations: Activations) -> SparseCodes:
        """Codes of the rows of ``activations``."""
        ...


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """A transcoder that runs beside the policy; only its name is known here."""

    identity: str
    n_features: int = 0
    d_in: int = 0
    d_out: int = 0
    feature_names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def like(cls, transcoder: TranscoderLike) -> _Elsewhere:
        """The names and the widths alone, without the tensors."""
        return cls(
            transcoder.identity,
            transcoder.n_features,
            transcoder.d_in,
            transcoder.d_out,
            transcoder.feature_names,
        )


@dataclass(slots=True)
class _HookPoint:
    transcoder: TranscoderLike
    error_sum: float = 0.0
    error_affine_sum: float = 0.0
    error_count: int = 0
    error_affine_count: int = 0

    unseen: list[SparseCodes] = field(default_factory=list)
    """Observed and not yet summed: many small batches cost as much as one."""

    def observe(self, codes: SparseCodes) -> None:
        self.unseen.append(codes)
        if len(self.unseen) >= SUMMED_AT_ONCE:
            self.sum_up()

    def sum_up(self) -> None:
        if not self.unseen:
            return
        error = np.concatenate([codes.error for codes in self.unseen])
        affine = np.concatenate([codes.error_affine for codes in self.unseen])
        self.unseen.clear()
        known = error[~np.isnan(error)]
        self.error_sum += float(known.sum(dtype=np.float64))
        self.error_count += len(known)
        known = affine[~np.isnan(affine)]
        self.error_affine_sum += float(known.sum(dtype=np.float64))
        self.error_affine_count += len(known)


@dataclass(slots=True)
class LossCounts:
    """What the receiving side of an agent's link knows, set by the shell from its ledger."""

    received: int = 0
    declared: dict[str, int] = field(default_factory=dict)
    undeclared: int = 0
    duplicates: int = 0


@dataclass(slots=True)
class _Agent:
    manifest: Manifest
    hook_points: dict[str, _HookPoint]
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    loss: LossCounts = field(default_factory=LossCounts)
    encoded: int = 0
    overload: int = 0
    last_step_ns: int = 0
    ended: bool = False
    elsewhere: bool = False
    """Encodes beside its policy."""
    sent: int | None = None
    rate: float = 0.0
    rate_at_ns: int = 0
    rate_encoded: int = 0
    described: list[dict[str, str]] = field(default_factory=list)
    """The metrics as the status shows them: the same every time, so written once."""
    waited: list[NDArray[np.float64]] = field(default_factory=list)
    """Latencies in ms that are not yet in the histogram."""
    shown: tuple[LatencyHistogram, Percentiles] | None = None
    """A copy of the histogram for who scrapes it; that of a silent agent stays the same."""

    def count_latencies(self) -> None:
        if self.waited:
            self.latency.observe(np.concatenate(self.waited))
            self.waited.clear()
            self.shown = None

    def sum_up(self) -> tuple[LatencyHistogram, Percentiles]:
        self.count_latencies()
        if self.shown is None:
            self.shown = self.latency.copy(), Percentiles(*self.latency.percentiles(50, 99))
        return self.shown


@dataclass(slots=True)
class _Open:
    """A message that waits for its hook points to be encoded."""

    source: str
    batch: StepBatch
    hook_points: dict[str, _HookPoint]
    """Those that encode it, as they were when it arrived: a new version begins after it."""
    codes: dict[str, SparseCodes | list[SparseCodes]]


class EncoderCore:
    """Manifests and step batches in, feature batches out.

    Args:
        library: finds transcoders by policy hash and hook point.
        encode: turns activations into codes.
        limits: micro-batching bounds.
        clock: wall clock in ns since the epoch; replaced in tests.

    A ``source`` is the shell's name for one connection.
    """

    def __init__(
        self,
        library: Library,
        encode: Encode,
        *,
        limits: BatchLimits | None = None,
        clock: Callable[[], int],
    ) -> None:
        self._library = library
        self._encode = encode
        self._clock = clock
        self._batcher = MicroBatcher(limits)
        self._joiner = Joiner()
        self._agents: dict[str, _Agent] = {}
        self._alone = False
        """Whether one run goes on: its rows then have nobody to wait for."""
        self._transcoders: dict[str, TranscoderLike] = {}
        self._open: dict[int, _Open] = {}
        self._next_message = 0
        self.refused_rows = 0
        self.vanished = 0
        """Runs that ended without a goodbye."""

    # -- admission ---------------------------------------------------------------------------------

    def admit(self, source: str, manifest: Manifest) -> tuple[str, ...]:
        """Admit an agent; returns the names of hook points that have no transcoder.

        Raises:
            MismatchError: when no hook point has a transcoder trained on this policy, or a
                transcoder's widths differ from the hook point's.
        """
        hook_points: dict[str, _HookPoint] = {}
        missing: list[str] = []
        for spec in manifest.hook_points:
            transcoder = self._library.find(manifest.policy_hash, spec.name)
            if transcoder is None:
                missing.append(spec.name)
                continue
            _check_widths(transcoder, manifest, spec)
            hook_points[spec.name] = _HookPoint(transcoder)
        if not hook_points:
            raise MismatchError(self._no_transcoder(manifest))
        self._enter(source, manifest, hook_points)
        for hook_point in hook_points.values():
            self._transcoders[hook_point.transcoder.identity] = hook_point.transcoder
        return tuple(missing)

    def admit_encoded(
        self, source: str, manifest: Manifest, transcoders: Mapping[str, str]
    ) -> None:
        """Admit an agent that encodes beside its policy and sends features.

        Its own side checked that each transcoder belongs to the policy; here only the widths that
        its features name are known, once they come.
        """
        hook_points = {
            name: _HookPoint(_Elsewhere(identity)) for name, identity in transcoders.items()
        }
        self._enter(source, manifest, hook_points)
        self._agents[source].elsewhere = True

    def _enter(self, source: str, manifest: Manifest, hook_points: dict[str, _HookPoint]) -> None:
        ended = [name for name, agent in self._agents.items() if agent.ended]
        for name in ended[: max(0, len(ended) - RUNS_SHOWN + 1)]:
            del self._agents[name]
        described = [
            {
                "name": metric.name,
                "unit": metric.unit,
                "role": metric.role.value,
                "description": metric.description,
            }
            for metric in manifest.metrics
        ]
        self._agents[source] = _Agent(
            manifest, hook_points, rate_at_ns=self._clock(), described=described
        )
        self._alone = len(self.going_on()) == 1

    def _no_transcoder(self, manifest: Manifest) -> str:
        names = ", ".join(repr(spec.name) for spec in manifest.hook_points)
        policies = self._library.policies()
        if manifest.policy_hash in policies:
            there = ", ".join(repr(name) for name in policies[manifest.policy_hash])
            return (
                f"policy {manifest.policy_hash} of agent {manifest.agent!r} has transcoders for "
                f"{there}, but none for {names}; hook those, or train the others"
            )
        known = ", ".join(sorted(policies)) or "no policy at all"
        return (
            f"no transcoder was trained on policy {manifest.policy_hash} of agent "
            f"{manifest.agent!r} (hook points {names}); the library holds transcoders for {known}; "
            "train some with `interlatent-live train`"
        )

    def follows(self, source: str) -> bool:
        """Whether a source was admitted and has not ended since."""
        agent = self._agents.get(source)
        return agent is not None and not agent.ended

    def manifest(self, source: str) -> Manifest | None:
        """What an admitted source said of itself."""
        agent = self._agents.get(source)
        return agent.manifest if agent else None

    def transcoders(self, source: str) -> dict[str, str]:
        """Transcoder hash by hook point of an admitted source."""
        hook_points = self._agents[source].hook_points
        return {name: hook.transcoder.identity for name, hook in hook_points.items()}

    def set_loss(
        self,
        source: str,
        *,
        received: int,
        declared: Mapping[str, int],
        undeclared: int,
        duplicates: int,
    ) -> None:
        """What the receiving end's ledger says of a source now."""
        loss = self._agents[source].loss
        loss.received, loss.undeclared, loss.duplicates = received, undeclared, duplicates
        loss.declared = dict(declared)

    def goodbye(self, source: str, sent: int | None) -> None:
        """The agent ended its run; ``sent`` is its own count of steps."""
        agent = self._agents.get(source)
        if agent is not None:
            agent.ended = True
            agent.sent = sent
            for hook_point in agent.hook_points.values():
                hook_point.transcoder = _Elsewhere.like(hook_point.transcoder)
            self._alone = len(self.going_on()) == 1

    def vanish(self, source: str) -> None:
        """A run ended without a goodbye, and so long ago that nobody waits for it any more."""
        self.vanished += 1
        self.goodbye(source, None)

    def going_on(self) -> tuple[str, ...]:
        """The sources of runs that have not ended."""
        return tuple(source for source, agent in self._agents.items() if not agent.ended)

    # -- new versions ------------------------------------------------------------------------------

    def serving(self) -> dict[tuple[str, str], str | None]:
        """What encodes now, by policy hash and hook point, over the runs that go on.

        ``None`` where a run has a hook point without a transcoder. Runs that encode beside their
        policy are not among them.
        """
        found: dict[tuple[str, str], str | None] = {}
        for agent in self._following():
            manifest = agent.manifest
            for spec in manifest.hook_points:
                hook_point = agent.hook_points.get(spec.name)
                identity = None if hook_point is None else hook_point.transcoder.identity
                found[manifest.policy_hash, spec.name] = identity
        return found

    def replace(self, policy_hash: str, hook_point: str, transcoder: TranscoderLike) -> int:
        """Encode this hook point of this policy with ``transcoder`` from the next message on.

        What arrived before is encoded by what was there before, so no message and no batch mixes
        two versions, and a run's rows go from one to the other once. The reconstruction error
        begins anew.

        Returns:
            How many runs it was replaced for.

        Raises:
            MismatchError: when its widths are not the hook point's; nothing is replaced then.
        """
        meant = []
        for agent in self._following():
            if agent.manifest.policy_hash != policy_hash:
                continue
            for spec in agent.manifest.hook_points:
                if spec.name == hook_point:
                    _check_widths(transcoder, agent.manifest, spec)
                    meant.append(agent)
        for agent in meant:
            old = agent.hook_points.get(hook_point)
            if old is not None:
                if old.transcoder.identity == transcoder.identity:
                    continue
                self._batcher.drain(old.transcoder.identity)
            agent.hook_points[hook_point] = _HookPoint(transcoder)
            self._transcoders[transcoder.identity] = transcoder
        return len(meant)

    def retired(self) -> tuple[str, ...]:
        """Identities that nothing needs any more: each is named once."""
        needed = {
            hook_point.transcoder.identity
            for agent in self._agents.values()
            if not agent.ended
            for hook_point in agent.hook_points.values()
        }
        needed.update(
            hook_point.transcoder.identity
            for waiting in self._open.values()
            for hook_point in waiting.hook_points.values()
        )
        gone = tuple(identity for identity in self._transcoders if identity not in needed)
        for identity in gone:
            del self._transcoders[identity]
        return gone

    def _following(self) -> list[_Agent]:
        """Runs that go on and are encoded here."""
        return [one for one in self._agents.values() if not one.ended and not one.elsewhere]

    # -- steps -------------------------------------------------------------------------------------

    def submit(self, source: str, batch: StepBatch, now_ns: int) -> bool:
        """Take in one batch of steps; ``now_ns`` is monotonic.

        Returns whether a feature batch will come of it: there is none of an empty batch, of one
        without any hook point that is encoded, and of one that found no room (counted as lost).

        Raises:
            UserError: when the source was not admitted, or a hook point's width is wrong.
        """
        agent = self._agents.get(source)
        if agent is None:
            raise UserError("steps arrived from a source that has not said hello; reconnect")
        rows = len(batch.steps)
        if rows == 0:
            return False
        message = self._next_message
        self._next_message += 1
        accepted: list[Request] = []
        encoding: dict[str, _HookPoint] = {}
        for name, hook_point in agent.hook_points.items():
            activations = batch.activations.get(name)
            if activations is None:
                continue
            request = Request(message, name, source, hook_point.transcoder.identity, rows)
            if self._batcher.submit(request, now_ns):
                accepted.append(request)
                encoding[name] = hook_point
                if self._alone:
                    self._batcher.drain(request.transcoder)
            else:
                self.refused_rows += rows
        if not accepted:
            agent.overload += rows
            return False
        self._open[message] = _Open(source, batch, encoding, {})
        self._joiner.open(message, source, accepted)
        return True

    def encoded_elsewhere(self, source: str, batch: FeatureBatch) -> FeatureBatch:
        """Count features that an agent encoded itself; they go on as they are.

        Raises:
            UserError: when the source was not admitted, or a hook point's transcoder is not the one
                it announced.
        """
        agent = self._agents.get(source)
        if agent is None:
            raise UserError("features arrived from a source that has not said hello; reconnect")
        for name, codes in batch.codes.items():
            hook_point = agent.hook_points.get(name)
            if hook_point is None or hook_point.transcoder.identity != batch.transcoders[name]:
                raise UserError(
                    f"agent {agent.manifest.agent!r} sent features of {name!r} by a transcoder "
                    "that it had not announced; restart it"
                )
            hook_point.transcoder = _Elsewhere(batch.transcoders[name], codes.n_features)
            hook_point.observe(codes)
        return self._counted(agent, replace(batch, encoded_ns=batch.encoded_ns or self._clock()))

    def _counted(self, agent: _Agent, batch: FeatureBatch) -> FeatureBatch:
        steps = batch.steps
        agent.encoded += len(steps)
        if len(steps):
            agent.last_step_ns = int(steps.time_ns[-1])
            agent.waited.append((batch.encoded_ns - steps.time_ns) / 1e6)
            if len(agent.waited) >= SUMMED_AT_ONCE:
                agent.count_latencies()
        return batch

    def has_room(self) -> bool:
        """Whether to take in more now: half of the room is kept for what one message brings."""
        return self._batcher.pending_rows * 2 < self._batcher.limits.max_pending_rows

    def next_ready_ns(self) -> int | None:
        """When :meth:`encode_ready` next has something to do."""
        return self._batcher.next_ready_ns()

    def encode_ready(self, now_ns: int, *, flush: bool = False) -> Iterator[FeatureBatch]:
        """Encode what is ready (everything, with ``flush``) and yield completed feature batches."""
        while True:
            batch = self._batcher.take(now_ns)
            if batch is None and flush:
                batch = self._batcher.take_any()
            if batch is None:
                return
            self._encode_batch(batch)
            for message in self._joiner.finish(batch):
                yield self._complete(message)

    def _encode_batch(self, batch: Batch) -> None:
        transcoder = self._transcoders[batch.transcoder]
        parts = [
            _rows(
                self._open[s.request.message].batch.activations[s.request.hook_point],
                s.start,
                s.stop,
            )
            for s in batch.slices
        ]
        codes = self._encode(transcoder, _concatenated(parts))
        for piece in batch.slices:
            request = piece.request
            part = _code_rows(codes, piece.offset, piece.offset + len(piece))
            held = self._open[request.message].codes
            if len(piece) == request.rows:
                held[request.hook_point] = part
            else:
                pieces = held.setdefault(request.hook_point, [])
                if isinstance(pieces, list):
                    pieces.append(part)

    def _complete(self, message: int) -> FeatureBatch:
        waiting = self._open.pop(message)
        agent = self._agents[waiting.source]
        steps = waiting.batch.steps
        # Flags are below 8, so the largest byte tells; nearly always nobody was silent.
        some_silent = max(steps.flags.tobytes()) >= StepFlag.NO_ACTIVATION
        silent = (steps.flags & StepFlag.NO_ACTIVATION).astype(bool) if some_silent else None
        codes: dict[str, SparseCodes] = {}
        for name, held in waiting.codes.items():
            whole = held if isinstance(held, SparseCodes) else joined_codes(held)
            codes[name] = whole if silent is None else _without_rows(whole, silent)
            waiting.hook_points[name].observe(codes[name])
        return self._counted(
            agent,
            FeatureBatch(
                run_id=agent.manifest.run_id,
                boot_id=agent.manifest.boot_id,
                steps=steps,
                codes=codes,
                transcoders={n: waiting.hook_points[n].transcoder.identity for n in codes},
                encoded_ns=self._clock(),
            ),
        )

    # -- what is shown -----------------------------------------------------------------------------

    def agents(self) -> list[AgentStatus]:
        """The status of every run, in the order in which they connected."""
        return [self._status(agent) for agent in self._agents.values()]

    def latencies(self) -> dict[str, LatencyHistogram]:
        """Step → feature latency by agent name, as it is now."""
        return {agent.manifest.agent: agent.sum_up()[0] for agent in self._agents.values()}

    def _status(self, agent: _Agent) -> AgentStatus:
        now = self._clock()
        elapsed = (now - agent.rate_at_ns) / 1e9
        if elapsed > 0:
            recent = (agent.encoded - agent.rate_encoded) / elapsed
            keep = 0.5 ** (elapsed / RATE_HALF_LIFE_S)
            agent.rate = recent if agent.rate == 0 else keep * agent.rate + (1 - keep) * recent
            agent.rate_at_ns, agent.rate_encoded = now, agent.encoded
        _, percentiles = agent.sum_up()
        manifest = agent.manifest
        return AgentStatus(
            agent=manifest.agent,
            run_id=manifest.run_id,
            boot_id=manifest.boot_id,
            environment=manifest.environment,
            policy_hash=manifest.policy_hash,
            env_count=manifest.env_count,
            control_hz=manifest.control_hz,
            actions=list(manifest.actions),
            metrics=agent.described,
            hook_points=[_hook_status(n, h) for n, h in agent.hook_points.items()],
            steps_received=agent.loss.received,
            steps_encoded=agent.encoded,
            dropped_declared=agent.loss.declared
            | ({OVERLOAD: agent.overload} if agent.overload else {}),
            gaps_undeclared=agent.loss.undeclared,
            duplicates=agent.loss.duplicates,
            steps_per_second=agent.rate,
            step_to_feature_ms=percentiles,
            last_step_ns=agent.last_step_ns,
            ended=agent.ended,
            steps_sent=agent.sent,
        )


def _check_widths(transcoder: TranscoderLike, manifest: Manifest, spec: HookPointSpec) -> None:
    """Refuse a transcoder of other widths than the hook point's.

    Raises:
        MismatchError: naming both.
    """
    if (transcoder.d_in, transcoder.d_out) != (spec.d_in, spec.d_out):
        raise MismatchError(
            f"transcoder {transcoder.identity} maps {transcoder.d_in} → {transcoder.d_out}, but "
            f"hook point {spec.name!r} of agent {manifest.agent!r} maps {spec.d_in} → "
            f"{spec.d_out}; train a transcoder for it"
        )


def _hook_status(name: str, hook_point: _HookPoint) -> HookPointStatus:
    hook_point.sum_up()
    return HookPointStatus(
        name=name,
        transcoder=hook_point.transcoder.identity,
        n_features=hook_point.transcoder.n_features,
        fvu=hook_point.error_sum / hook_point.error_count if hook_point.error_count else None,
        fvu_affine=(
            hook_point.error_affine_sum / hook_point.error_affine_count
            if hook_point.error_affine_count
            else None
        ),
        fvu_steps=hook_point.error_count,
        feature_names={
            str(index): name for index, name in hook_point.transcoder.feature_names.items()
        },
    )


def _rows(activations: Activations, start: int, stop: int) -> Activations:
    """Rows start:stop with the sampled outputs that belong to them."""
    if start == 0 and stop == len(activations.x):
        return activations
    first, last = np.searchsorted(activations.y_rows, [start, stop])
    return Activations(
        x=activations.x[start:stop],
        y=activations.y[first:last],
        y_rows=(activations.y_rows[first:last] - start).astype(np.uint16),
    )


def _concatenated(parts: list[Activations]) -> Activations:
    if len(parts) == 1:
        return parts[0]
    offset = 0
    rows: list[NDArray[np.int64]] = []
    for part in parts:
        rows.append(part.y_rows.astype(np.int64) + offset)
        offset += len(part.x)
    return Activations(
        x=np.concatenate([part.x for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        y_rows=np.concatenate(rows).astype(np.uint16),
    )


def _code_rows(codes: SparseCodes, start: int, stop: int) -> SparseCodes:
    if start == 0 and stop == len(codes):
        return codes
    first, last = int(codes.indptr[start]), int(codes.indptr[stop])
    return SparseCodes(
        n_features=codes.n_features,
        indptr=codes.indptr[start : stop + 1] - codes.indptr[start],
        index=codes.index[first:last],
        value=codes.value[first:last],
        error=codes.error[start:stop],
        error_affine=codes.error_affine[start:stop],
    )


def _without_rows(codes: SparseCodes, absent: NDArray[np.bool_]) -> SparseCodes:
    """The same rows with no features and no error where ``absent``."""
    lengths = np.diff(codes.indptr)
    keep = np.repeat(~absent, lengths)
    lengths = np.where(absent, 0, lengths)
    nan = np.float32(np.nan)
    return SparseCodes(
        n_features=codes.n_features,
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32),
        index=codes.index[keep],
        value=codes.value[keep],
        error=np.where(absent, nan, codes.error),
        error_affine=np.where(absent, nan, codes.error_affine),
    )
