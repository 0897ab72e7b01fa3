"""What the console asks of the explainer: claims and wishes of people, histories, incidents.

What it asks of an agent's shadow passes through here too (:mod:`why_relay`).

Claims are scored where the rows are, so a predicate that a person types has to reach the explainer.
It listens for such requests on a socket of its own; this module is everything about them except the
socket. Another user of the machine can connect to a loopback port too, so every message, in both
directions, carries an HMAC-SHA256 (RFC 2104) under a key that only this user's processes can read;
the key itself never travels, whoever answers on the port. A request is fresh for a minute, and one
that comes twice gets the first one's answer instead of being carried out again.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from interlatent_live.errors import UserError
from interlatent_live.explanations.claims import MeasuredEffect
from interlatent_live.explanations.incident import (
    analyse_incident,
    known_claims,
    small_enough,
)
from interlatent_live.explanations.predicates import PredicateError, to_english, to_text
from interlatent_live.explanations.scores import Interval
from interlatent_live.explanations.why_relay import (
    AskWhy,
    ShadowHere,
    WhyAnswered,
    WhyMessage,
    WhyRelay,
)
from interlatent_live.explanations.writers.person import draft_by_person

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlatent_live.explanations.claims import Claim
    from interlatent_live.explanations.explainer import Explainer
    from interlatent_live.explanations.writers import Draft

FRESH_NS: Final = 60 * 10**9
LARGEST_BODY: Final = 64 * 1024
HISTORY_EVENTS: Final = 20
"""Newest verdicts of one claim in an answer; the console has the older ones in its store."""


class ClaimByPerson(msgspec.Struct, frozen=True, tag="claim"):
    """A predicate typed by a person, for one feature of one run."""

    id: str
    sent_ns: int
    run_id: str
    hook_point: str
    feature: int
    predicate: str
    person: str
    label: str = ""
    description: str = ""


class Wording(msgspec.Struct, frozen=True, tag="wording"):
    """A person wants the language model to word this feature's claim before all others."""

    id: str
    sent_ns: int
    run_id: str
    hook_point: str
    feature: int


class Recollect(msgspec.Struct, frozen=True, tag="recollect"):
    """The verdicts that the explainer remembers of one (run, hook point).

    For a console that was away.
    """

    id: str
    sent_ns: int
    run_id: str
    hook_point: str


class LookBack(msgspec.Struct, frozen=True, tag="incident"):
    """What was unusual in the last ``window`` steps of an episode."""

    id: str
    sent_ns: int
    run_id: str
    hook_point: str
    env: int
    episode: int
    window: int = 100


Estimate = tuple[float | None, float | None, float | None]
"""Value and the ends of its 95 % interval."""


class EffectOnAction(msgspec.Struct, frozen=True):
    """What a feature adds to one action's value, and its percentiles among controls by kind."""

    action: str
    effect: Estimate
    percentiles: dict[str, Estimate]
    controls: int
    stands_out: bool


class EffectMeasured(msgspec.Struct, frozen=True, tag="effect"):
    """An agent's shadow interventions: the direct effect of one feature on every action."""

    id: str
    sent_ns: int
    run_id: str
    hook_point: str
    transcoder: str
    feature: int
    steps: int
    episodes: int
    effects: list[EffectOnAction]


Request = ClaimByPerson | Wording | Recollect | LookBack | EffectMeasured
"""What the explainer's worker carries out."""
Incoming = Request | WhyMessage


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The claim was made; its held-out ledger starts now."""

    id: str
    address: str
    version: int
    predicate: str
    english: str
    verdict: str
    created_ns: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Nothing was done.

    ``why`` is one of ``predicate``, ``unknown``, ``refused``, ``busy``, ``stale``; ``position``
    counts characters of the predicate from 0.
    """

    id: str
    why: str
    message: str
    position: int | None = None


class Recollection(msgspec.Struct, frozen=True, tag="recollection"):
    """Verdicts by feature address, oldest first: the events of a claim's history as maps."""

    id: str
    run_id: str
    hook_point: str
    verdicts: dict[str, list[dict[str, Any]]]


class IncidentFound(msgspec.Struct, frozen=True, tag="incident"):
    """The analysis as :meth:`interlatent_live.explanations.incident.Incident.to_json` gives it."""

    id: str
    incident: dict[str, Any]


class Noted(msgspec.Struct, frozen=True, tag="noted"):
    """The effect is on the claim now, or the wish is first in the queue."""

    id: str


Answer = Accepted | Refused | Recollection | IncidentFound | Noted | WhyAnswered


class Inquiries(Protocol):
    """What requests are carried out on: the explainers of the runs that are known."""

    def explainer(self, run_id: str, hook_point: str) -> Explainer:
        """The explainer of one (run, hook point).

        Raises:
            UserError: when there is none.
        """
        ...

    def adopt_by_person(self, run_id: str, hook_point: str, feature: int, draft: Draft) -> Claim:
        """Make a person's draft the feature's claim, and ask no model for another.

        Raises:
            UserError: when the run is unknown or has ended.
        """
        ...

    def word_first(self, run_id: str, hook_point: str, feature: int) -> None:
        """Have a feature's claim worded before all others.

        Raises:
            UserError: when run or feature are unknown, nobody words claims, or it was worded.
        """
        ...


# ---------------------------------------------------------------------------------- the envelope


def seal(key: bytes, message: Incoming | Answer) -> list[bytes]:
    """``[signature, body]``: a message as it travels."""
    body = msgspec.json.encode(message)
    return [hmac.digest(key, body, "sha256"), body]


def open_request(key: bytes, frames: Sequence[bytes | memoryview]) -> Incoming | None:
    """The request in the frames; ``None`` when it is not one, or not signed with this key."""
    body = _body(key, frames)
    if body is None or len(body) > LARGEST_BODY:
        return None
    try:
        request: Incoming = msgspec.json.decode(body, type=Incoming)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None
    return request


def open_answer(key: bytes, frames: Sequence[bytes | memoryview]) -> Answer | None:
    """The answer in the frames; ``None`` when it is not one, or not signed with this key."""
    body = _body(key, frames)
    if body is None:
        return None
    try:
        answer: Answer = msgspec.json.decode(body, type=Answer)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None
    return answer


def _body(key: bytes, frames: Sequence[bytes | memoryview]) -> bytes | None:
    if len(frames) != 2:
        return None
    signature, body = bytes(frames[0]), bytes(frames[1])
    return body if hmac.compare_digest(signature, hmac.digest(key, body, "sha256")) else None


# -------------------------------------------------------------------------------------- the desk


@dataclass(frozen=True, slots=True)
class Reply:
    """Frames to be sent to a peer of the socket."""

    peer: bytes
    frames: list[bytes]


@dataclass(slots=True)
class RequestDesk:
    """Takes requests in, hands each out once, and remembers the answers.

    No I/O and no threads: the socket's loop calls :meth:`receive` and :meth:`finish`. At most
    ``waiting`` requests are under way; at most ``remembered`` answers are kept for repeats.

    Raises:
        ValueError: without a key, because an empty key would admit everybody.
    """

    key: bytes
    waiting: int = 16
    remembered: int = 256
    refused: dict[str, int] = field(default_factory=dict)
    """Messages that were not answered, by reason."""
    relay: WhyRelay = field(default_factory=WhyRelay)
    _peers: dict[str, bytes] = field(default_factory=dict)
    _answers: OrderedDict[str, tuple[int, Answer]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        """Refuse to work without a secret."""
        if not self.key:
            raise ValueError("a request desk needs a key")

    def receive(
        self, peer: bytes, frames: Sequence[bytes | memoryview], now_ns: int, user_id: str = ""
    ) -> Request | Reply | None:
        """A request to be carried out, or a reply to be sent at once, or nothing.

        ``user_id`` is whose key made the connection, where connections need one: an agent's key
        speaks for its shadow and asks for nothing.
        """
        request = self._opened(peer, frames, user_id)
        if request is None:
            return None
        if isinstance(request, WhyMessage):
            return self._why(peer, request, now_ns, user_id)
        return self._admitted(peer, request, now_ns)

    def _admitted(self, peer: bytes, request: Request, now_ns: int) -> Request | Reply | None:
        self._forget(now_ns)
        known = self._answers.get(request.id)
        if known is not None:
            return Reply(peer, seal(self.key, known[1]))
        if request.id in self._peers:
            self._peers[request.id] = peer
            return None
        if abs(now_ns - request.sent_ns) > FRESH_NS:
            return self._refuse(peer, request, "stale", "the request is older than a minute")
        if len(self._peers) >= self.waiting or len(self._answers) >= self.remembered:
            return self._refuse(peer, request, "busy", "too many requests; ask again in a moment")
        self._peers[request.id] = peer
        return request

    def overdue(self, now_ns: int) -> list[Reply]:
        """Replies to questions that nobody answered in time."""
        return [
            Reply(peer, seal(self.key, message)) for peer, message in self.relay.overdue(now_ns)
        ]

    def finish(self, answer: Answer, now_ns: int) -> Reply | None:
        """The reply for a request that was carried out."""
        peer = self._peers.pop(answer.id, None)
        if peer is None:
            return None
        # Recollections are large, effects many, and neither does harm when it comes twice.
        if not isinstance(answer, Recollection | Noted):
            self._answers[answer.id] = (now_ns, answer)
        return Reply(peer, seal(self.key, answer))

    def _opened(
        self, peer: bytes, frames: Sequence[bytes | memoryview], user_id: str
    ) -> Incoming | None:
        request = open_request(self.key, frames)
        if request is None:
            self.refused["signature"] = self.refused.get("signature", 0) + 1
        elif user_id.startswith("agent/") and not self._agent_may(peer, request):
            self.refused["role"] = self.refused.get("role", 0) + 1
            return None
        return request

    def _agent_may(self, peer: bytes, request: Incoming) -> bool:
        if isinstance(request, EffectMeasured):
            return self.relay.owns(peer, request.run_id)
        return isinstance(request, ShadowHere | WhyAnswered)

    def _why(self, peer: bytes, message: WhyMessage, now_ns: int, user_id: str) -> Reply | None:
        if abs(now_ns - message.sent_ns) > FRESH_NS:
            if isinstance(message, AskWhy):
                return self._refuse(peer, message, "stale", "the request is older than a minute")
            return None
        passed = self.relay.take(peer, user_id, message, now_ns)
        return None if passed is None else Reply(passed[0], seal(self.key, passed[1]))

    def _forget(self, now_ns: int) -> None:
        # A request may come from a clock a minute ahead and is then fresh for two.
        while self._answers and next(iter(self._answers.values()))[0] < now_ns - 2 * FRESH_NS:
            self._answers.popitem(last=False)

    def _refuse(self, peer: bytes, request: Incoming, why: str, message: str) -> Reply:
        self.refused[why] = self.refused.get(why, 0) + 1
        return Reply(peer, seal(self.key, Refused(request.id, why, message)))


# ------------------------------------------------------------------------------------ the doing


def carry_out(request: Request, inquiries: Inquiries) -> Answer:
    """Do what is asked; a user's mistake becomes a :class:`Refused`, never an exception."""
    answer: Answer
    try:
        match request:
            case ClaimByPerson():
                answer = _claim(request, inquiries)
            case Wording():
                inquiries.word_first(request.run_id, request.hook_point, request.feature)
                answer = Noted(request.id)
            case Recollect():
                answer = _recollect(request, inquiries)
            case LookBack():
                answer = _look_back(request, inquiries)
            case EffectMeasured():
                answer = _note_effect(request, inquiries)
    except PredicateError as error:
        answer = Refused(request.id, "predicate", str(error), error.position)
    except UserError as error:
        answer = Refused(request.id, "refused", str(error))
    return answer


def _claim(request: ClaimByPerson, inquiries: Inquiries) -> Answer:
    explainer = inquiries.explainer(request.run_id, request.hook_point)
    draft = draft_by_person(
        request.predicate,
        explainer.specs,
        person=request.person,
        label=request.label,
        description=request.description,
    )
    # Without a rule and a null of its own no claim about a feature could ever be judged.
    if all(claim.address.index != request.feature for claim in explainer.claims):
        known = len(explainer.claims)
        return Refused(
            request.id,
            "unknown",
            f"feature {request.hook_point}/{request.feature} was never on in the steps that claims "
            f"are proposed from; {known} features were"
            if known
            else "no claims have been proposed for this run yet; wait for its first episodes",
        )
    claim = inquiries.adopt_by_person(request.run_id, request.hook_point, request.feature, draft)
    predicate = claim.predicate
    return Accepted(
        request.id,
        str(claim.address),
        claim.version,
        "" if predicate is None else to_text(predicate),
        "" if predicate is None else to_english(predicate),
        str(claim.verdict),
        claim.created_ns,
    )


def _note_effect(request: EffectMeasured, inquiries: Inquiries) -> Answer:
    explainer = inquiries.explainer(request.run_id, request.hook_point)
    effects = tuple(
        MeasuredEffect(
            one.action,
            Interval(*one.effect),
            {kind: Interval(*percentile) for kind, percentile in one.percentiles.items()},
            one.controls,
            request.steps,
            request.episodes,
            one.stands_out,
        )
        for one in request.effects
    )
    explainer.note_effects(request.feature, request.transcoder, effects)
    return Noted(request.id)


def _recollect(request: Recollect, inquiries: Inquiries) -> Answer:
    explainer = inquiries.explainer(request.run_id, request.hook_point)
    verdicts = {
        str(claim.address): [
            {
                "at_ns": event.at_ns,
                "version": event.version,
                "verdict": str(event.verdict),
                "reason": event.reason,
                "balanced_accuracy": event.balanced_accuracy,
                "predicate": event.predicate,
                "writer": event.writer,
            }
            for event in claim.history[-HISTORY_EVENTS:]
        ]
        for claim in explainer.claims
    }
    return Recollection(request.id, request.run_id, request.hook_point, verdicts)


def _look_back(request: LookBack, inquiries: Inquiries) -> Answer:
    explainer = inquiries.explainer(request.run_id, request.hook_point)
    evidence = small_enough(explainer.evidence(), env=request.env, episode=request.episode)
    found = analyse_incident(
        evidence,
        env=request.env,
        episode=request.episode,
        claims=known_claims(explainer.claims),
        window=min(max(request.window, 1), 10_000),
    )
    return IncidentFound(request.id, found.to_json())
