"""The explainer of one hook point as a plain object: batches in, claims and sentences out.

It does no I/O and starts nothing; a service feeds it and decides when the costly steps run. The
order is: ``propose`` from a calibration recording (or from early episodes), ``search_null`` bit by
bit, ``observe`` the live stream, ``rescore`` now and then, ``narrate`` every few seconds. Drafts
of writers go through ``offer``, people's through ``challenge``, and all through the same gate: what
stands is shown until something better is verified. Claims are scored only on
episodes begun after their text was fixed; adjusted p-values are computed at declared looks, which
are numbers of held-out episodes (6, 8, 12, 16, 24, 32, 48 …).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.explanations.claims import Claim, MeasuredEffect, claim_counts, claim_json
from interlatent_live.explanations.clauses import kept_clauses, prune
from interlatent_live.explanations.decayed import DEFAULT_HALF_LIFE, DecayedCounts, RecentScores
from interlatent_live.explanations.evidence import DEFAULT_LIMIT_BYTES, Evidence, EvidenceStore
from interlatent_live.explanations.narrator import WINDOWS, Narrator, Sentence
from interlatent_live.explanations.nulls import NullKind, NullModel, NullResult
from interlatent_live.explanations.predicates import evaluate, leaf_count, to_english, to_text
from interlatent_live.explanations.profile import FeatureProfile, build_profile
from interlatent_live.explanations.rules import MAX_ROWS, Rule, induce_rules
from interlatent_live.explanations.scores import balanced_accuracy_of, score_rows
from interlatent_live.explanations.search import CLOCK_TERMS, PLAIN_TERMS, RuleScores, TermFamilies
from interlatent_live.explanations.sequential import (
    FALSE_WITHDRAWALS_PER_MILLION,
    Events,
    Limits,
    Watch,
    claim_events,
    joined,
    limits_of,
    start_watch,
    update_watch,
)
from interlatent_live.explanations.truth import truth_of
from interlatent_live.explanations.verification import Verdict, judge
from interlatent_live.explanations.writers import Draft, state_rule
from interlatent_live.explanations.writers.builtin import BUILT_IN, label_of
from interlatent_live.explanations.writers.person import by_person
from interlatent_live.stream import FeatureAddress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.explanations.predicates import Predicate, Truth
    from interlatent_live.explanations.scores import Interval, Scores
    from interlatent_live.explanations.triggers import Moment
    from interlatent_live.explanations.truth import Citations
    from interlatent_live.explanations.verification import Judgement
    from interlatent_live.stream import FeatureBatch, MetricSpec

MOST_CHALLENGERS: Final = 16
"""Claims by people checked beside those that stand; each costs looks at the null of its own."""
MOST_DRAFTS: Final = 32
"""The same of writers; what they have more to say waits."""
EPISODES_FOR_A_DRAFT: Final = 48
"""Later episodes in which a writer's draft must have proved better, or it goes; a declared look."""
UNITS_AGAIN: Final = 64
"""Newest episodes that a feature with a withdrawn claim is proposed for from."""
MOST_SEARCHES: Final = 16
"""Searches whose rules are in use, each of which holds its rows; no more are begun beyond."""
_STANDING: Final = frozenset({Verdict.VERIFIED, Verdict.PENDING})
_COPIES_NARRATED: Final = 64
_LOOKS: Final = tuple(sorted({6 * 2**k for k in range(20)} | {8 * 2**k for k in range(20)}))


@dataclass(frozen=True, slots=True)
class ExplainerConfig:
    """Numbers of the explainer; the defaults are those of docs/explanations.md."""

    null_draws: int = 199
    """B; reports say so, and 999 is what a publication wants."""
    null: NullKind = NullKind.REASSIGN
    families: TermFamilies = PLAIN_TERMS
    """Plain metrics: right for a policy without memory, and the fastest. Recurrent policies want
    ``TermFamilies()``, which adds changes and lags."""
    seed: int = 0
    max_rows: int = MAX_ROWS
    share_a: float = 0.5
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    block_steps: int | None = None
    false_withdrawals_per_million: float = FALSE_WITHDRAWALS_PER_MILLION
    half_life: float = DEFAULT_HALF_LIFE
    """Scored rows after which a row counts half in what is said of a claim as of late."""
    narration_windows: tuple[int, ...] = WINDOWS
    units_again: int = 16
    """Episodes (or blocks) after a withdrawal from which a claim is proposed anew."""


@dataclass(slots=True, eq=False)
class _Search:
    """One search for rules: what it was made on, what it found, and its null."""

    evidence: Evidence
    rules: dict[int, Rule]
    clocks: dict[int, Rule]
    null: NullModel | None
    looked: dict[int, tuple[int, NullResult]] = field(default_factory=dict)
    """By the moment a ledger begins after, units at the newest look at the null, and the look."""


@dataclass(frozen=True, slots=True)
class Told:
    """What was said of one copy at once, and how true it is."""

    env: int
    episode: int
    sentences: tuple[Sentence, ...]
    truth: Citations


class Explainer:
    """Claims of one hook point of one run.

    ``specs`` are the manifest's metrics, in order; ``actions`` its action names.
    """

    def __init__(
        self,
        specs: Sequence[MetricSpec],
        hook_point: str,
        *,
        config: ExplainerConfig | None = None,
        actions: tuple[str, ...] = (),
        environment: str = "",
        control_hz: float | None = None,
    ) -> None:
        self.config = config or ExplainerConfig()
        self.hook_point = hook_point
        self.specs = tuple(specs)
        self._actions, self._environment = actions, environment
        self._seconds: float | None = None
        self.acts_at(control_hz)
        self._store = EvidenceStore(
            specs, limit_bytes=self.config.limit_bytes, block_steps=self.config.block_steps
        )
        self._claims: dict[int, Claim] = {}
        self._challengers: dict[int, Claim] = {}
        self._spent: dict[int, int] = {}
        """By feature, how often α was halved by challengers that are checked no longer."""
        self._rules: dict[int, Rule] = {}
        self._clock: dict[int, Rule] = {}
        self._searches: list[_Search] = []
        self._search_of: dict[int, _Search] = {}
        """By feature, the search that its rule is from."""
        self._ledger_ns: dict[int, int] = {}
        self._withdrawn: dict[int, int] = {}
        """By feature with a withdrawn claim, units after the withdrawal that a proposal needs."""
        self._fresh: dict[int, int] = {}
        """By feature, units in the ledger of its claim at the last rescoring."""
        self._watches: dict[int, Watch] = {}
        self._recent: dict[int, DecayedCounts] = {}
        self._alarm = ""
        self._transcoder_hash = ""
        self._truths: dict[Predicate, Truth] = {}
        self.withdrawn_ns: dict[int, int] = {}
        """When the newest withdrawal of each withdrawn claim was raised, by feature."""
        self._said: dict[int, deque[tuple[tuple[str, int, str], ...]]] = {}

    def acts_at(self, control_hz: float | None) -> None:
        """How fast the agent acts, which only words the narration; None: count in steps."""
        self._seconds = 1 / control_hz if control_hz else None

    def split_every(self, steps: int) -> None:
        """Resample blocks of so many steps from now on, for a run whose episodes do not end."""
        self._store.split_every(steps)

    @property
    def evidence_bytes(self) -> int:
        """Bytes of the rows that are held."""
        return self._store.used_bytes

    def limit_evidence(self, limit_bytes: int) -> None:
        """Hold rows of at most so many bytes from now on."""
        self._store.limit(limit_bytes)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The newest version of every claim, by feature index."""
        return tuple(self._claims[index] for index in sorted(self._claims))

    @property
    def challengers(self) -> tuple[Claim, ...]:
        """Claims that are checked beside those that stand, by feature index."""
        return tuple(self._challengers[index] for index in sorted(self._challengers))

    @property
    def null_draws_done(self) -> int:
        """Draws of the null searched so far."""
        return sum(null.done for null in self._nulls())

    @property
    def null_draws_wanted(self) -> int:
        """Draws of the null that will have been searched once :meth:`search_null` is done."""
        return sum(null.draws for null in self._nulls())

    def _nulls(self) -> list[NullModel]:
        return [one.null for one in self._searches if one.null is not None]

    def propose(self, evidence: Evidence, now_ns: int) -> tuple[Claim, ...]:
        """Rules and built-in claims from proposal evidence, split by episode into A and B.

        Every feature that is live there gets a claim; where no rule is found it abstains.

        Raises:
            UserError: when the evidence has fewer than two episodes.
        """
        features = np.flatnonzero(evidence.coverage().live())
        self._transcoder_hash = evidence.transcoder_hash
        self._claims, self._watches, self._ledger_ns = {}, {}, {}
        self._challengers, self._spent, self._recent = {}, {}, {}
        self._rules, self._clock, self._search_of = {}, {}, {}
        self._withdrawn, self._fresh, self._searches = {}, {}, []
        found = self._search(evidence, features)
        self._searches.append(found)
        for rule in found.rules.values():
            self._found_in(found, rule.feature)
            self.adopt(rule.feature, state_rule(rule), now_ns)
        return self.claims

    def _search(self, evidence: Evidence, features: NDArray[np.integer]) -> _Search:
        """Look for rules of some features, on A and B of some evidence."""
        config = self.config
        a, b = evidence.split(config.share_a, config.seed)
        rules = induce_rules(a, b, features, families=config.families, max_rows=config.max_rows)
        clocks = induce_rules(a, b, features, families=CLOCK_TERMS, max_rows=config.max_rows)
        null = None
        if len(features):
            null = NullModel(
                a,
                b,
                features,
                draws=config.null_draws,
                families=config.families,
                seed=config.seed,
                max_rows=config.max_rows,
                kind=config.null,
            )
        return _Search(
            evidence,
            {rule.feature: rule for rule in rules},
            {rule.feature: rule for rule in clocks},
            null,
        )

    def _found_in(self, search: _Search, feature: int) -> None:
        """Take a feature's rules, null and past from a search from now on."""
        self._search_of[feature] = search
        self._rules[feature] = search.rules[feature]
        self._clock.pop(feature, None)
        if feature in search.clocks:
            self._clock[feature] = search.clocks[feature]

    def due_again(self) -> tuple[int, ...]:
        """Features with a withdrawn claim of which enough was seen since to propose anew."""
        if self._alarm:
            return ()
        return tuple(
            sorted(
                feature
                for feature, units in self._withdrawn.items()
                if self._fresh.get(feature, 0) >= units
            )
        )

    def propose_again(self, now_ns: int) -> tuple[Claim, ...]:
        """Propose for the features of :meth:`due_again`, from what began after the withdrawal only.

        What was withdrawn belongs to a regime that has passed, so none of its rows are looked at:
        rules are searched on the newest :data:`UNITS_AGAIN` units begun since, with a null of their
        own. A rule that differs becomes the next version, with a ledger of later episodes, and
        spends of α as every rewrite of a scored claim does. Where there is none, or the same one,
        the withdrawn claim stays, and it is looked again once twice as much was seen.

        Returns:
            The new versions.
        """
        due = self.due_again()
        if not due:
            return ()
        for feature in due:
            self._withdrawn[feature] *= 2
        evidence = self._store.evidence(self.hook_point)
        if evidence.transcoder_hash != self._transcoder_hash:
            return ()
        since = evidence.begun_after(max(self._ledger_ns[feature] for feature in due))
        newest = np.sort(since.unit_begun_ns)[-UNITS_AGAIN:]
        fresh = since.select(since.unit_begun_ns >= newest[0]) if len(newest) else since
        live = fresh.coverage().live()
        features = np.array([f for f in due if f < len(live) and live[f]], np.int64)
        if fresh.n_units < 2 or len(features) == 0 or len(self._searches) >= MOST_SEARCHES:
            return ()
        found = self._search(fresh, features)
        made = []
        for feature, rule in found.rules.items():
            if rule.predicate is None or rule.predicate == self._claims[feature].predicate:
                continue
            draft = state_rule(rule)
            words = f"{draft.description} (Proposed anew from {fresh.n_units} later episodes.)"
            self._found_in(found, feature)
            made.append(self.adopt(feature, replace(draft, description=words), now_ns))
        if made:
            self._searches.append(found)
            used = {id(one) for one in self._search_of.values()}
            self._searches = [one for one in self._searches if id(one) in used]
        return tuple(made)

    def propose_from_live(self, now_ns: int) -> tuple[Claim, ...]:
        """As :meth:`propose`, from what has been observed so far.

        Raises:
            UserError: when fewer than two episodes have been seen.
        """
        return self.propose(self._store.evidence(self.hook_point), now_ns)

    def profile(self, feature: int) -> FeatureProfile:
        """What a writer is told of a feature.

        Raises:
            UserError: when the feature was not proposed for.
        """
        if feature not in self._rules:
            raise UserError(
                f"feature {self.hook_point}/{feature} has no profile yet; propose claims first"
            )
        profile = build_profile(
            self._search_of[feature].evidence,
            self._rules[feature],
            actions=self._actions,
            environment=self._environment,
            seed=self.config.seed,
        )
        current = self._claims.get(feature)
        if current is None or current.verdict not in (Verdict.WEAK, Verdict.CONTRADICTED):
            return profile
        failed = "" if current.predicate is None else to_text(current.predicate)
        return replace(profile, previous=failed)

    def adopt(self, feature: int, draft: Draft, now_ns: int) -> Claim:
        """Make a draft the feature's newest claim at once; its held-out ledger starts now.

        For a feature that has no claim worth keeping; :meth:`offer` looks whether it has one.
        """
        claim = self._made(feature, draft, now_ns)
        self._claims[feature] = claim
        self._begin_ledger(feature, int(now_ns))
        return claim

    def _begin_ledger(self, feature: int, since_ns: int) -> None:
        """Judge the claim that stands now by what begins after a moment."""
        self._ledger_ns[feature] = since_ns
        self._fresh[feature] = 0
        self._withdrawn.pop(feature, None)
        self._watches.pop(feature, None)
        self._recent.pop(feature, None)

    def offer(self, feature: int, draft: Draft, now_ns: int) -> Claim | None:
        """Take in a writer's draft, beside the claim that stands where that holds or still may.

        A claim that failed, was withdrawn or abstained has nothing to lose and is replaced now.

        Returns:
            What was made of the draft; None where no place is free, see :meth:`takes_drafts`.

        Raises:
            UserError: when the feature has no claim.
        """
        if not self.takes_drafts(feature):
            return None
        if not _stands(self._claims[feature]):
            return self.adopt(feature, draft, now_ns)
        claim = self._made(feature, draft, now_ns)
        self._challengers[feature] = claim
        return claim

    def takes_drafts(self, feature: int) -> bool:
        """Whether a writer's draft for a feature could be checked now.

        It cannot be checked beside a claim that stands while a person's is, or ``MOST_DRAFTS``
        others of writers are.

        Raises:
            UserError: when the feature has no claim.
        """
        if not _stands(self._claim(feature)):
            return True
        rival = self._challengers.get(feature)
        if rival is not None:
            return not by_person(rival.writer)
        return sum(not by_person(one.writer) for one in self.challengers) < MOST_DRAFTS

    def challenge(self, feature: int, draft: Draft, now_ns: int) -> Claim:
        """Check a person's claim beside the one that stands, whose place it takes once better.

        It has a held-out ledger of its own from now on and is judged like any claim; at a rescoring
        that finds it verified, and the claim that stands not verified or less accurate on the same
        rows, it becomes the feature's claim. Of several for one feature the newest is checked.

        Raises:
            UserError: when the feature has no claim, or too many are being checked.
        """
        self._claim(feature)
        persons = [one for one in self.challengers if by_person(one.writer)]
        others = [one for one in persons if one.address.index != feature]
        if len(others) >= MOST_CHALLENGERS:
            judged = [one for one in others if one.verdict is not Verdict.PENDING]
            if not judged:
                raise UserError(
                    f"{MOST_CHALLENGERS} claims by people are being checked at {self.hook_point} "
                    "already; wait until later episodes have judged some"
                )
            self._give_up(min(judged, key=lambda one: one.created_ns))
        claim = self._made(feature, draft, now_ns)
        self._challengers[feature] = claim
        return claim

    def _made(self, feature: int, draft: Draft, now_ns: int) -> Claim:
        """A draft as the next version of what is said of the feature."""
        old, rival = self._claims.get(feature), self._challengers.get(feature)
        known = [one for one in (old, rival) if one is not None]
        claim = Claim(
            address=FeatureAddress(self.hook_point, feature, self._transcoder_hash),
            label=draft.label,
            description=draft.description,
            clauses=draft.clauses,
            predicate=draft.predicate,
            writer=draft.writer,
            prompt_hash=draft.prompt_hash,
            version=max((one.version + 1 for one in known), default=0),
            created_ns=int(now_ns),
            # Whoever tries again spends of the same α, whether it is a rewrite or a challenge.
            rewrites=max(
                [self._spent.get(feature, 0), *(one.rewrites + _was_scored(one) for one in known)]
            ),
            expected_effect=draft.expected_effect,
            confidence=draft.confidence,
            density=None if old is None else old.density,
            effects=() if old is None else old.effects,
            history=() if old is None else old.history,
        )
        if draft.predicate is None:
            return claim.judged(Verdict.ABSTAINED, "no rule tells when this feature is on", now_ns)
        return claim.judged(Verdict.PENDING, "no episode has begun since", now_ns)

    def prune(self, feature: int, now_ns: int) -> Claim | None:
        """Drop what the held-out episodes do not support; a new version, or None if all is needed.

        The shorter text has a ledger of its own, on episodes that begin from now on, and the longer
        one stands until they have verified it. None, too, where no place is free to check it.

        Raises:
            UserError: when the feature has no claim.
        """
        claim = self._claim(feature)
        if claim.predicate is None or not _was_scored(claim):
            return None
        held_out = self.evidence().begun_after(self._ledger_ns[feature])
        pruned = prune(claim.predicate, held_out, feature)
        rival = self._challengers.get(feature)
        if not pruned.dropped or (rival is not None and rival.predicate == pruned.predicate):
            return None
        draft = Draft(
            label=label_of(pruned.predicate),
            description=f"On when {to_english(pruned.predicate)}. "
            f"(Shortened: {len(pruned.dropped)} clause(s) had no support on later episodes.)",
            clauses=kept_clauses(claim.clauses, pruned),
            predicate=pruned.predicate,
            writer=claim.writer,
            prompt_hash=claim.prompt_hash,
            expected_effect=claim.expected_effect,
            confidence=claim.confidence,
        )
        return self.offer(feature, draft, now_ns)

    def set_effect(self, feature: int, effect: Interval) -> None:
        """Note a measured direct effect on the expected action; the next rescoring judges by it.

        Raises:
            UserError: when the feature has no claim.
        """
        self._claims[feature] = replace(self._claim(feature), effect=effect)

    def note_effects(
        self, feature: int, transcoder: str, effects: tuple[MeasuredEffect, ...]
    ) -> None:
        """Note what shadow interventions in the agent measured, for every action.

        The effect on the action that the claim expects to change enters its verdict.

        Raises:
            UserError: when the feature has no claim, or the effect is another transcoder's.
        """
        claim = self._claim(feature)
        if transcoder != claim.address.transcoder_hash:
            raise UserError(
                f"the effect of feature {self.hook_point}/{feature} was measured with "
                f"{transcoder}, its claim is about {claim.address.transcoder_hash}"
            )
        expected = None if claim.expected_effect is None else claim.expected_effect.action
        named = [one.effect for one in effects if one.action == expected]
        self._claims[feature] = replace(
            claim, effects=effects, effect=named[0] if named else claim.effect
        )

    def _claim(self, feature: int) -> Claim:
        if feature not in self._claims:
            raise UserError(f"feature {self.hook_point}/{feature} has no claim")
        return self._claims[feature]

    def search_null(self, count: int | None = None) -> int:
        """Search more draws of the null; returns how many are missing still."""
        for null in self._nulls():
            done = null.search(count)
            count = None if count is None else count - done
        return self.null_draws_wanted - self.null_draws_done

    def stop_looking(self) -> None:
        """Look at the null no more: claims keep the p of their last look, new ones stay pending.

        For a benchmark that asks only which verified claims fall.
        """
        for search in self._searches:
            search.null = None

    def observe(self, batch: FeatureBatch) -> None:
        """Take in a batch of the live stream."""
        self._store.add(batch)

    def set_alarm(self, reason: str) -> None:
        """Mark all claims stale while ``reason`` (reconstruction error, drift) is not empty."""
        self._alarm = reason

    def rescore(self, now_ns: int, *, last: bool = False) -> tuple[Claim, ...]:
        """Score every claim on the episodes begun since it was made, and judge it.

        The null is looked at again only at declared numbers of held-out episodes, or when ``last``.
        """
        if not self._claims or self.hook_point not in self._store.hook_points():
            return self.claims
        evidence = self._store.evidence(self.hook_point)
        mismatch = ""
        if evidence.transcoder_hash != self._transcoder_hash:
            mismatch = (
                f"the stream is encoded by {evidence.transcoder_hash}, the claim is about "
                f"{self._transcoder_hash}"
            )
        ledgers: dict[tuple[int, int], list[int]] = {}
        for feature, since in self._ledger_ns.items():
            ledgers.setdefault((since, id(self._search_of[feature])), []).append(feature)
        for (since, _), features in ledgers.items():
            held_out = evidence.begun_after(since)
            self._rescore_ledger(held_out, since, features, now_ns, last=last, stale=mismatch)
        for challenger in self.challengers:
            self._rescore_challenger(
                challenger, evidence, now_ns, last=last, stale=mismatch or self._alarm
            )
        return self.claims

    def _rescore_ledger(
        self,
        held_out: Evidence,
        since: int,
        features: list[int],
        now_ns: int,
        *,
        last: bool,
        stale: str,
    ) -> None:
        coverage = held_out.coverage()
        self._truths = {}
        search = self._search_of[features[0]]
        for feature in features:
            claim = self._claims[feature]
            self._fresh[feature] = held_out.n_units
            if feature < held_out.n_features:
                claim = replace(claim, density=float(coverage.density[feature]))
            if claim.predicate is not None:
                self._note_recent(claim.predicate, feature, held_out)
                claim = self._scored(claim, held_out)
            self._claims[feature] = claim
        null = self._look(search, held_out, since, last=last)
        for feature in features:
            claim = self._claims[feature]
            if claim.predicate is None or claim.scores is None:
                continue
            claim = self._with_p(claim, null)
            self._claims[feature] = self._judged(claim, held_out, now_ns, stale or self._alarm)
        self._truths = {}

    def _note_recent(self, predicate: Predicate, feature: int, held_out: Evidence) -> None:
        if len(held_out) and feature < held_out.n_features:
            counts = self._recent.get(feature, DecayedCounts(self.config.half_life))
            holds = self._truth(predicate, held_out).holds
            until = int(held_out.time_ns.max())
            self._recent[feature] = counts.after(held_out, feature, holds, until)

    def recent(self, feature: int) -> RecentScores | None:
        """What the newest rows say of a feature's claim; None before any were scored."""
        counts = self._recent.get(feature)
        return None if counts is None else counts.scores()

    def fall_of(self, feature: int) -> float | None:
        """How far a claim's balanced accuracy of late is below its ledger's; None: unknown."""
        recent, claim = self.recent(feature), self._claims.get(feature)
        scores = None if claim is None else claim.scores
        ledger = None if scores is None else scores.balanced_accuracy.value
        late = None if recent is None else recent.balanced_accuracy.value
        return None if ledger is None or late is None else ledger - late

    def _rescore_challenger(
        self, claim: Claim, evidence: Evidence, now_ns: int, *, last: bool, stale: str
    ) -> None:
        """Judge a challenger by its own ledger, and let it stand where it is better."""
        feature, held_out = claim.address.index, evidence.begun_after(claim.created_ns)
        was_judged = claim.verdict is not Verdict.PENDING
        self._truths = {}
        claim = self._scored(claim, held_out)
        scores = claim.scores
        if scores is not None:
            search = self._search_of[feature]
            null = self._look(search, held_out, claim.created_ns, last=last)
            claim = self._with_p(claim, null)
            judgement = self._judgement(claim, scores, stale)
            claim = claim.judged(judgement.verdict, judgement.reason, now_ns)
        self._challengers[feature] = claim
        old = self._claims[feature]
        if claim.verdict is Verdict.VERIFIED and self._beats(claim, held_out):
            del self._challengers[feature]
            self._claims[feature] = replace(
                claim, density=old.density, history=(*old.history, claim.history[-1])
            )
            self._begin_ledger(feature, claim.created_ns)
        elif (
            was_judged  # so that its verdict was shown
            and not by_person(claim.writer)
            and held_out.n_units >= EPISODES_FOR_A_DRAFT
        ):
            self._give_up(claim)
        self._truths = {}

    def _give_up(self, challenger: Claim) -> None:
        """Check a challenger no longer; what it spent of α stays spent."""
        feature = challenger.address.index
        del self._challengers[feature]
        self._spent[feature] = challenger.rewrites + _was_scored(challenger)

    def _beats(self, claim: Claim, held_out: Evidence) -> bool:
        """Whether a verified challenger tells on from off better than the claim that stands.

        Two more may take the place without being more accurate: a language model's words for the
        built-in's rule, since words are what it is asked for, and what is left of the standing
        predicate when clauses without support on these rows are dropped.
        """
        standing, feature = self._claims[claim.address.index], claim.address.index
        if standing.verdict is not Verdict.VERIFIED or standing.predicate is None:
            return True
        holds = self._truth(standing.predicate, held_out).holds
        theirs = balanced_accuracy_of(held_out, feature, holds).value
        ours = None if claim.scores is None else claim.scores.balanced_accuracy.value
        if ours is None or theirs is None or ours > theirs:
            return ours is not None
        if claim.predicate == standing.predicate:
            return standing.writer == BUILT_IN and not by_person(claim.writer)
        return claim.predicate == prune(standing.predicate, held_out, feature).predicate

    def _with_p(self, claim: Claim, null: NullResult | None) -> Claim:
        """With its adjusted p against a look at the null, where there is one."""
        accuracy = None if claim.scores is None else claim.scores.balanced_accuracy
        model = self._search_of[claim.address.index].null
        if null is None or model is None or accuracy is None or accuracy.value is None:
            return claim
        at = int(np.searchsorted(model.features, claim.address.index))
        p = null.p_of(at, accuracy.value, accuracy.error)
        return replace(claim, p_adjusted=p, null_draws=null.draws)

    def _judgement(self, claim: Claim, scores: Scores, stale: str) -> Judgement:
        """The verdict of a claim's scores."""
        return judge(
            scores,
            claim.p_adjusted,
            version=claim.rewrites,
            effect_sign=0 if claim.expected_effect is None else claim.expected_effect.sign,
            effect=claim.effect,
            stale=stale,
        )

    def _scored(self, claim: Claim, held_out: Evidence) -> Claim:
        predicate, feature = claim.predicate, claim.address.index
        if predicate is None or feature >= held_out.n_features:
            return claim
        truth = self._truth(predicate, held_out)
        scores = score_rows(held_out, feature, truth.holds, truth.undefined)
        best = self._rules[feature].of_size(leaf_count(predicate))
        rival = None
        if best is not None:
            rival = scores.balanced_accuracy
            if best != predicate:
                holds = self._truth(best, held_out).holds
                rival = balanced_accuracy_of(held_out, feature, holds)
        clock = self._clock[feature].predicate if feature in self._clock else None
        by_clock = None
        if clock is not None:
            holds = self._truth(clock, held_out).holds
            by_clock = balanced_accuracy_of(held_out, feature, holds)
        return replace(
            claim,
            scores=scores,
            best_rule=None if best is None else to_text(best),
            best_rule_balanced_accuracy=None if rival is None else rival.value,
            clock_balanced_accuracy=None if by_clock is None else by_clock.value,
        )

    def _truth(self, predicate: Predicate, held_out: Evidence) -> Truth:
        """A predicate over the ledger being scored; claims and rules often share one."""
        if predicate not in self._truths:
            self._truths[predicate] = evaluate(predicate, held_out.columns())
        return self._truths[predicate]

    def _look(
        self, search: _Search, held_out: Evidence, since: int, *, last: bool
    ) -> NullResult | None:
        """The null for a ledger, computed anew at a declared look."""
        null = search.null
        if null is None or null.done == 0:
            return None
        due = [look for look in _LOOKS if look <= held_out.n_units]
        known = search.looked.get(since)
        at = held_out.n_units if last else (due[-1] if due else 0)
        if at == 0:
            return None
        if known is not None and (known[0] >= at) and known[1].draws == null.done:
            return known[1]
        observed, errors = (np.full(len(null.features), x) for x in (0.5, 0.0))
        for place, feature in enumerate(null.features):
            claim = self._claims.get(int(feature))
            if claim is not None and claim.scores is not None:
                accuracy = claim.scores.balanced_accuracy
                observed[place] = 0.5 if accuracy.value is None else accuracy.value
                errors[place] = accuracy.error or 0.0
        eligible = held_out.coverage().eligible()
        judged = np.array([f < len(eligible) and eligible[f] for f in null.features], bool)
        if not judged.any():
            return None
        result = null.judge(held_out, RuleScores(observed, errors), judged)
        search.looked[since] = (at, result)
        return result

    def _judged(self, claim: Claim, held_out: Evidence, now_ns: int, stale: str) -> Claim:
        if claim.scores is None:
            return claim
        feature = claim.address.index
        judgement = self._judgement(claim, claim.scores, stale)
        if (
            claim.verdict is Verdict.STALE
            and not stale
            and judgement.verdict is not Verdict.VERIFIED
        ):
            # Hysteresis: what was withdrawn stays so until a fresh ledger verifies it.
            return claim
        if judgement.verdict is Verdict.VERIFIED:
            self._withdrawn.pop(feature, None)
        # A claim that was verified stays watched when its score falls: that it broke says more
        # than that it is weak.
        verified = judgement.verdict is Verdict.VERIFIED
        broken = self._watch(claim, held_out) if verified or feature in self._watches else ""
        if broken and not stale:
            gone = self._watches.pop(feature)
            self.withdrawn_ns[feature] = gone.alarm_ns or now_ns
            self._ledger_ns[feature], self._fresh[feature] = now_ns, 0
            self._withdrawn[feature] = self.config.units_again
            return replace(claim, p_adjusted=None).judged(
                Verdict.STALE, f"withdrawn: {broken}", now_ns
            )
        return claim.judged(judgement.verdict, judgement.reason, now_ns)

    def _watch(self, claim: Claim, held_out: Evidence) -> str:
        """Run the withdrawal test over what happened since the last look; why it alarmed."""
        predicate = claim.predicate
        if predicate is None or claim.scores is None:
            return ""
        feature = claim.address.index
        watch = self._watches.get(feature)
        limits = limits_of(claim.scores) if watch is None else watch.limits
        holds = self._truth(predicate, held_out).holds
        missing, excess = _events(held_out, feature, holds, limits)
        until = int(held_out.time_ns.max())
        if watch is None:
            steps = len(held_out)
            proposal = self._search_of[feature].evidence
            holds = evaluate(predicate, proposal.columns()).holds
            past = _events(proposal, feature, holds, limits)
            missing, excess = joined(past[0], missing), joined(past[1], excess)
            steps += len(proposal)
            rate = self.config.false_withdrawals_per_million
            watch = start_watch(missing, excess, steps, until, limits, rate=rate)
        else:
            watch = update_watch(watch, missing, excess, until)
        self._watches[feature] = watch
        return watch.broken

    def narrate(self, limit: int = 3, *, at: Moment | None = None) -> tuple[Told, ...]:
        """What agent copies are doing: the most telling sentences of ``limit`` of them.

        Of the newest step of every copy, or of the window that ends at one moment. What was said of
        a copy the last two times is said again only where nothing else is of note. How true the
        words are is judged on the same rows.
        """
        verified = [c for c in self._claims.values() if c.verdict is Verdict.VERIFIED]
        if not verified or self.hook_point not in self._store.hook_points():
            return ()
        evidence = self._store.evidence(self.hook_point)
        narrator = self.narrator(evidence)
        rows = narrator.latest_rows()[:_COPIES_NARRATED] if at is None else narrator.rows_at(at)
        found: list[tuple[Sentence, ...]] = []
        for row in rows:
            copy = int(evidence.unit_key[evidence.unit[row], 1])
            recent = {key for said in self._said.get(copy, ()) for key in said}
            sentences = narrator.narrate_at(int(row), recent)
            if sentences:
                found.append(sentences)
        # Rarest first, by whether there is anything new, so that one state is not told all over.
        found.sort(key=lambda one: (self._all_said(one), one[0].common))
        chosen = found[:limit]
        for sentences in chosen:
            before = self._said.setdefault(sentences[0].env, deque(maxlen=2))
            before.append(tuple(key for sentence in sentences for key in sentence.keys))
        return tuple(
            Told(said[0].env, said[0].episode, said, truth_of(said, evidence)) for said in chosen
        )

    def _all_said(self, sentences: tuple[Sentence, ...]) -> bool:
        said = {key for times in self._said.values() for keys in times for key in keys}
        return all(key in said for sentence in sentences for key in sentence.keys)

    def narrator(self, evidence: Evidence) -> Narrator:
        """A narrator of the current claims over some evidence."""
        return Narrator(
            evidence,
            self.claims,
            windows=self.config.narration_windows,
            seconds_per_step=self._seconds,
        )

    def evidence(self) -> Evidence:
        """All rows held now.

        Raises:
            UserError: when nothing has been observed.
        """
        return self._store.evidence(self.hook_point)

    def report(self) -> dict[str, Any]:
        """Features with their claims, and totals, as the feeds and the demo's report show them."""
        live, eligible = 0, set()
        held_out = None
        if self._claims and self.hook_point in self._store.hook_points():
            held_out = self._store.evidence(self.hook_point).begun_after(
                min(claim.created_ns for claim in self._claims.values())
            )
        if held_out is not None:
            coverage = held_out.coverage()
            live = int(coverage.live().sum())
            for feature in np.flatnonzero(coverage.eligible()):
                address = FeatureAddress(self.hook_point, int(feature), held_out.transcoder_hash)
                eligible.add(str(address))
        features = [
            {
                "address": str(claim.address),
                "density": claim.density,
                "eligible": str(claim.address) in eligible,
                "claim": {
                    **claim_json(claim),
                    "recent": self._recent_json(claim),
                    "challenger": self._challenger_json(claim),
                },
            }
            for claim in self.claims
        ]
        return {"features": features, "claims": claim_counts(self.claims, live, eligible)}

    def _recent_json(self, claim: Claim) -> dict[str, float | None] | None:
        recent = self.recent(claim.address.index)
        if recent is None:
            return None
        accuracy = recent.balanced_accuracy
        return {
            "balanced_accuracy": accuracy.value,
            "balanced_accuracy_lo": accuracy.low,
            "balanced_accuracy_hi": accuracy.high,
            "precision": recent.precision.value,
            "half_life_rows": recent.half_life,
            "effective_rows": recent.effective_rows,
            "effective_units": recent.effective_units,
        }

    def _challenger_json(self, claim: Claim) -> dict[str, Any] | None:
        found = self._challengers.get(claim.address.index)
        return None if found is None else claim_json(found)


def _events(
    evidence: Evidence, feature: int, holds: NDArray[np.bool_], limits: Limits
) -> tuple[Events, Events]:
    """What speaks of a claim; ``holds`` [n] says where its predicate does."""
    return claim_events(evidence.on(feature), holds, evidence.scored, evidence, limits)


def _stands(claim: Claim) -> bool:
    """Whether a claim holds, or still may; what failed has nothing to lose."""
    return claim.predicate is not None and claim.verdict in _STANDING


def _was_scored(claim: Claim) -> bool:
    """Whether held-out rows have been looked at through this version."""
    return claim.scores is not None and claim.scores.rows > 0
