"""The way of some rows from an agent to a claim, as spans of one trace, without a word on the wire.

Every service sees the same boot and row numbers, and so they name a trace: every ``every``-th row
of a boot is *traced*, its trace id is a hash of boot and row number, and a stage's span id is a
hash of the trace and the stage's name. So no context travels, each service says its own part by
itself, and a message without a traced row costs one division.

    step            the agent's own clock, until the encoder has the message
    └ encode        waits for its micro-batch and is encoded
      └ publish     waits for other rows and is offered to the consumers
        ├ correlate waits for its block and is in the statistics
        └ take in   waits for the explainer's thread and is evidence
          ├ chat    a language model words a claim
          └ propose a claim's version begins: under its `chat` where there was one
            └ judge it gets another verdict; linked to the rows that brought it about

Ids follow OpenTelemetry's (16 and 8 bytes, never all zeros); the attributes of requests to language
models are named by its semantic conventions for generative AI.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from interlatent_live.feed.documents import ClaimsDocument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import msgspec

    from interlatent_live.explanations.writers import Usage
    from interlatent_live.stream import FeatureBatch, Steps

    Attributes = Mapping[str, str | int | float | bool]
    Emit = Callable[["Span"], None]
    Clock = Callable[[], int]
    Key = tuple[str, str, int]
    """Run, hook point, index of the feature."""

K = TypeVar("K")
V = TypeVar("V")

MOST_UNDER_WAY: Final = 4096
"""Traced rows that a service has taken in and not passed on; the oldest are forgotten."""
MOST_CLAIMS: Final = 16_384
"""Claims whose newest verdict is remembered."""
PENDING: Final = "pending"
CLAIM: Final = "claim"
CHALLENGER: Final = "challenger"


class Stage(StrEnum):
    """What happens to rows, by the name of its span."""

    STEP = "step"
    ENCODE = "encode"
    PUBLISH = "publish"
    CORRELATE = "correlate"
    TAKE_IN = "take in"


PARENT: Final = {
    Stage.ENCODE: Stage.STEP,
    Stage.PUBLISH: Stage.ENCODE,
    Stage.CORRELATE: Stage.PUBLISH,
    Stage.TAKE_IN: Stage.PUBLISH,
}


@dataclass(frozen=True, slots=True)
class SpanRef:
    """Names a span anywhere: a trace of 16 bytes, a span of 8."""

    trace_id: bytes
    span_id: bytes


@dataclass(frozen=True, slots=True)
class Span:
    """One thing that was done. Times are ns since the epoch; ``ended_ns`` ≥ ``began_ns``."""

    name: str
    ref: SpanRef
    parent: SpanRef | None
    began_ns: int
    ended_ns: int
    attributes: Attributes
    links: tuple[SpanRef, ...] = ()
    failed: str = ""
    """Why it came to nothing; empty where it did not."""


def traced_rows(first_seq: int, rows: int, every: int) -> range:
    """Row numbers within ``[first_seq, first_seq + rows)`` that are multiples of ``every``.

    Nothing where ``every`` is 0.
    """
    if not every:
        return range(0)
    return range(first_seq + -first_seq % every, first_seq + rows, every)


def span_of_row(boot_id: str, seq: int, stage: Stage) -> SpanRef:
    """The span of what a stage does with a traced row."""
    trace_id = _hashed(16, "rows", boot_id, str(seq))
    return SpanRef(trace_id, _hashed(8, trace_id.hex(), stage.value))


def _hashed(size: int, *parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=size).digest()


class RowTraces:
    """What one service does with traced rows; may be used from several threads.

    Args:
        every: every so many-th row of a boot is traced; 0: none, and nothing else costs anything.
        emit: takes a span; never waits.
        clock: ns since the epoch.
    """

    def __init__(self, every: int, emit: Emit, clock: Clock = time.time_ns) -> None:
        self._every = every
        self._emit = emit
        self._clock = clock
        self._since: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._lock = threading.Lock()

    def arrived(self, boot_id: str, steps: Steps) -> None:
        """A message with these rows came in."""
        if self._every:
            for seq in traced_rows(steps.first_seq, len(steps), self._every):
                self._begin(boot_id, seq)

    def passed(self, stage: Stage, batch: FeatureBatch, *, last: bool = True) -> SpanRef | None:
        """A stage is done with these rows; with ``last`` it is this service's last.

        Returns the span of the newest traced row among them.
        """
        if not self._every:
            return None
        newest = None
        steps = batch.steps
        for seq in traced_rows(steps.first_seq, len(steps), self._every):
            now = self._clock()
            with self._lock:
                began = self._since.pop((batch.boot_id, seq), now)
            row = seq - steps.first_seq
            attributes: dict[str, str | int] = {
                "interlatent.run": batch.run_id,
                "interlatent.boot": batch.boot_id,
                "interlatent.seq": seq,
                "interlatent.env": int(steps.env[row]),
                "interlatent.episode": int(steps.episode[row]),
                "interlatent.step": int(steps.t[row]),
                "interlatent.rows": len(steps),
            }
            if stage is Stage.ENCODE:
                stepped = min(int(steps.time_ns[row]), began)
                root = span_of_row(batch.boot_id, seq, Stage.STEP)
                self._emit(Span(Stage.STEP.value, root, None, stepped, began, attributes))
            newest = span_of_row(batch.boot_id, seq, stage)
            parent = span_of_row(batch.boot_id, seq, PARENT[stage])
            self._emit(Span(stage.value, newest, parent, began, max(began, now), attributes))
            if not last:
                self._begin(batch.boot_id, seq)
        return newest

    def _begin(self, boot_id: str, seq: int) -> None:
        with self._lock:
            self._since[boot_id, seq] = self._clock()
            if len(self._since) > MOST_UNDER_WAY:
                self._since.popitem(last=False)


OFF: Final = RowTraces(0, lambda _: None)
"""Traces nothing."""


@dataclass(frozen=True, slots=True)
class _Known:
    version: int
    verdict: str
    proposed: SpanRef


class ClaimTraces:
    """How claims come about in one explainer, in the traces of the rows that led to them.

    A version of a claim belongs to the trace of the newest traced row that its run's evidence
    held when it was proposed or its words were asked for; each later verdict is a span under the
    proposal, with a link to the rows that were the newest then. What a language model proposes is
    checked as a challenger of the claim, and traced as such. Used from the threads that think and
    that wait for a model.

    Args:
        every: as of :class:`RowTraces`; 0: nothing is traced.
        emit: takes a span; never waits.
        clock: ns since the epoch.
    """

    def __init__(self, every: int, emit: Emit, clock: Clock = time.time_ns) -> None:
        self.rows = RowTraces(every, emit, clock)
        self._on = every > 0
        self._emit = emit
        self._clock = clock
        self._newest: OrderedDict[str, SpanRef] = OrderedDict()
        self._known: OrderedDict[tuple[Key, str], _Known] = OrderedDict()
        self._worded: OrderedDict[Key, tuple[str, SpanRef]] = OrderedDict()
        self._lock = threading.Lock()

    def now(self) -> int:
        """The clock, for spans that last; 0 where nothing is traced."""
        return self._clock() if self._on else 0

    def taken(self, batch: FeatureBatch) -> None:
        """The explainer has taken rows in."""
        newest = self.rows.passed(Stage.TAKE_IN, batch)
        if newest is not None:
            with self._lock:
                _put(self._newest, batch.run_id, newest)

    def requested(
        self,
        key: Key,
        what: str,
        began_ns: int,
        *,
        model: str,
        usage: Usage,
        dollars: float,
        failed: str = "",
    ) -> None:
        """A language model was asked, to ``word`` or to ``judge`` a claim, and has answered.

        Args:
            key: of the feature.
            what: ``word`` or ``judge``.
            began_ns: when it was asked, by :meth:`now`.
            model: as the writer names it, ``provider:model``.
            usage: requests and tokens of all attempts.
            dollars: US dollars by the price list.
            failed: why its answer is of no use.
        """
        if not self._on or not usage.requests:
            return
        provider, _, name = model.partition(":")
        with self._lock:
            known = self._known.get((key, CLAIM))
            parent = self._newest.get(key[0])
            if what == "judge" and known is not None:
                parent = known.proposed
        ref = _under(parent, "chat", *map(str, key), what, str(began_ns))
        attributes = {
            **_feature(key),
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": name,
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "interlatent.purpose": what,
            "interlatent.requests": usage.requests,
            "interlatent.cost_usd": dollars,
        }
        ended = max(began_ns, self._clock())
        self._emit(Span(f"chat {name}", ref, parent, began_ns, ended, attributes, failed=failed))
        if what == "word":
            with self._lock:
                _put(self._worded, key, (model, ref))

    def published(self, documents: Iterable[msgspec.Struct], began_ns: int) -> None:
        """What a stretch of thinking that began at ``began_ns`` has to say of claims."""
        if not self._on:
            return
        for document in documents:
            if isinstance(document, ClaimsDocument):
                for claim in document.claims:
                    self._claim(document, claim, began_ns)

    def _claim(self, document: ClaimsDocument, claim: Mapping[str, Any], began_ns: int) -> None:
        address = str(claim["address"])
        index = int(address.rpartition("@")[0].rpartition("/")[2])
        key = (document.run_id, document.hook_point, index)
        if (challenger := claim.get("challenger")) is not None:
            self._version(key, address, challenger, began_ns, CHALLENGER)
        self._version(key, address, claim, began_ns, CLAIM)

    def _version(
        self, key: Key, address: str, claim: Mapping[str, Any], began_ns: int, role: str
    ) -> None:
        version, verdict, writer = int(claim["version"]), claim["verdict"], claim["writer"]
        with self._lock:
            known = self._known.get((key, role))
            if known is not None and (known.version, known.verdict) == (version, verdict):
                return
            newest = self._newest.get(key[0])
            worded = self._worded.get(key)
        ended = max(began_ns, self._clock())
        attributes = {
            **_feature(key),
            "interlatent.address": address,
            "interlatent.claim.role": role,
            "interlatent.claim.version": version,
            "interlatent.claim.writer": writer,
            "interlatent.claim.predicate": claim["predicate"] or "none: abstained",
        }
        if known is None or known.version != version:
            parent = worded[1] if worded is not None and worded[0] == writer else newest
            ref = _under(parent, "propose", *map(str, key), role, str(version))
            links = () if known is None else (known.proposed,)
            self._emit(Span("propose", ref, parent, began_ns, ended, attributes, links))
            known = _Known(version, PENDING, ref)
        if known.verdict != verdict:
            parent = known.proposed
            ref = _under(parent, "judge", *map(str, key), role, str(version), verdict, str(ended))
            links = () if newest is None else (newest,)
            more = attributes | _scores(claim)
            self._emit(Span(f"judge {verdict}", ref, parent, began_ns, ended, more, links))
        with self._lock:
            _put(self._known, (key, role), _Known(version, verdict, known.proposed))


NO_CLAIMS: Final = ClaimTraces(0, lambda _: None)
"""Traces nothing."""


def _under(parent: SpanRef | None, *name: str) -> SpanRef:
    """A span of this name, in the parent's trace or, without one, in a trace of its own."""
    trace_id = _hashed(16, *name) if parent is None else parent.trace_id
    return SpanRef(trace_id, _hashed(8, trace_id.hex(), *name))


def _feature(key: Key) -> dict[str, str | int]:
    run_id, hook_point, index = key
    return {
        "interlatent.run": run_id,
        "interlatent.hook_point": hook_point,
        "interlatent.feature": index,
    }


def _scores(claim: Mapping[str, Any]) -> dict[str, Any]:
    """What the verdict rests on; what is undefined is left out."""
    found = {
        "interlatent.claim.verdict": claim["verdict"],
        "interlatent.claim.reason": claim["reason"],
        "interlatent.claim.balanced_accuracy": claim["balanced_accuracy"],
        "interlatent.claim.p_adjusted": claim["p_adjusted"],
        "interlatent.claim.episodes_heldout": claim["episodes_heldout"],
    }
    return {name: value for name, value in found.items() if value is not None}


def _put(into: OrderedDict[K, V], key: K, value: V) -> None:
    into[key] = value
    into.move_to_end(key)
    if len(into) > MOST_CLAIMS:
        into.popitem(last=False)
