"""The explainer service without sockets and threads: runs in, claims and narration out.

Everything costly is cut into units of work (:meth:`ExplainerCore.work`), so a loop can take rows in
between two of them. Claims are proposed from a calibration recording made with the very transcoder
of the run, or else from its first episodes; either way they are verified on later episodes only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interlatent_live.errors import UserError
from interlatent_live.explanations import Explainer, Verdict
from interlatent_live.explanations.blocks import block_length
from interlatent_live.explanations.narrator import sentence_json
from interlatent_live.explanations.pacing import Pacing
from interlatent_live.explanations.scheduling import drift_factor, importance
from interlatent_live.explanations.triggers import TriggerWatch, alert_trigger
from interlatent_live.explanations.truth import TruthRate
from interlatent_live.explanations.writers import BuiltInWriter
from interlatent_live.feed.documents import (
    ClaimCost,
    ClaimsDocument,
    NarrationDocument,
    NarrationLine,
    NarrationTrigger,
    NarrationTruth,
)
from interlatent_live.pipeline.looks import LookKind, LookLog, RecordedLooks, cut_at
from interlatent_live.stream import EPISODE_END, FeatureAddress

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from interlatent_live.explanations import ExplainerConfig
    from interlatent_live.explanations.claims import Claim
    from interlatent_live.explanations.detection import Detection
    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.explanations.explainer import Told
    from interlatent_live.explanations.pacing import Turn
    from interlatent_live.explanations.profile import FeatureProfile
    from interlatent_live.explanations.writers import Draft
    from interlatent_live.feed.documents import AlertsDocument, LookRecord
    from interlatent_live.stream import FeatureBatch, Manifest

    Document = ClaimsDocument | NarrationDocument

EPISODES_TO_PROPOSE_FROM = 16
ROWS_TO_PROPOSE_FROM = 4000
ENDLESS_AFTER = 4000
"""Steps of each copy without any end, after which a run is taken for one that never ends."""
EPISODES_TO_PRUNE_ON = 16
MOST_ENDED = 8
"""Ended inquiries whose rows are kept for looking back; those that ended first go."""
BUILT_IN = BuiltInWriter().name
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things are done, in seconds, and in how big pieces."""

    rescore_s: float = 2.0
    narrate_s: float = 4.0
    narrate_gap_s: float = 1.0
    """Least time between two lines, whatever happens."""
    null_draws_at_once: int = 4
    null_s: float = 0.005
    """After so long no further draw is begun, since rows wait meanwhile."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Recorded evidence of one hook point, and the manifest it was recorded under."""

    manifest: Manifest
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Worded:
    """A profile that is to be worded, and how urgent that is."""

    run_id: str
    hook_point: str
    profile: FeatureProfile
    importance: float
    by_person: bool
    """A person asked for it."""


@dataclass(slots=True)
class _Inquiry:
    """One (run, hook point): its explainer and where its work stands."""

    manifest: Manifest
    hook_point: str
    transcoder: str
    explainer: Explainer
    calibrated: bool
    pacing: Pacing
    next_seq: int = 0
    first_row_ns: int | None = None
    first_verified_ns: int | None = None
    rescore_due_ns: int = 0
    ended: bool = False
    final: bool = False
    final_ns: int = 0
    unscored_rows: int = 0
    ended_episodes: int = 0
    split_due_seq: int = 0
    """Row from which it is looked whether the run is endless; −1: it is split, or never will be."""
    pruned: dict[int, int] = field(default_factory=dict)
    """Newest version of each feature's claim whose clauses were looked at."""
    asked: set[int] = field(default_factory=set)
    """Features whose profile was handed to a writer."""
    wanted: set[int] = field(default_factory=set)
    """Features that a person wants worded first."""
    opined: dict[int, int] = field(default_factory=dict)
    """Version of each feature's claim that a second opinion was asked of."""
    opinions: dict[int, tuple[int, Detection]] = field(default_factory=dict)
    """Version and second opinion, by feature."""
    watch: TriggerWatch = field(default_factory=TriggerWatch)
    truth: TruthRate = field(default_factory=TruthRate)
    firing: frozenset[str] = frozenset()
    """Alert rules that were said to fire."""
    drifting: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """By feature, evidence over its bar of the monitors that raised an alarm."""
    boot_id: str = ""
    """Of the newest rows."""
    looks: LookLog = field(default_factory=LookLog)
    coming: deque[LookRecord] | None = None
    """Looks that a replay has still to take; None: they are taken when the clock says so."""
    untold: bool = False
    """Whether claims changed by a look of a replay wait to be published."""


class ExplainerCore:
    """Runs, rows and goodbyes in; claims and narration out, one unit of work at a time.

    Args:
        config: of every explainer.
        calibrations: evidence to propose from, by transcoder hash.
        pace: how often claims are scored and the agent is narrated.
        writer: name of the writer shown with the claims.
        words: whether drafts are asked of a language model (:meth:`profiles_to_write`).
        clock: wall clock in ns since the epoch.
        cost_of: what a claim's words have cost, by feature address.
        looks: of the recordings that are replayed; the time is then that of the rows.
    """

    def __init__(
        self,
        config: ExplainerConfig,
        *,
        calibrations: Mapping[str, Calibration],
        pace: Pace,
        writer: str,
        words: bool,
        clock: Callable[[], int],
        cost_of: Callable[[str], ClaimCost | None] = lambda _: None,
        looks: RecordedLooks | None = None,
    ) -> None:
        self._config = config
        self._cost_of = cost_of
        self._calibrations = calibrations
        self._pace = pace
        self._writer = writer
        self._words = words
        self._looks = looks
        self._newest_ns = 0
        self._clock = clock if looks is None else lambda: self._newest_ns
        self._prepared: dict[str, Explainer] = {}
        self._prepared_ns = 0
        self._manifests: dict[str, Manifest] = {}
        # By run, the transcoder of each hook point that said hello. An inquiry begins with its
        # first rows: an agent that never acts costs nothing, and takes no part of the memory.
        self._announced: dict[str, dict[str, str]] = {}
        self._inquiries: dict[tuple[str, str], _Inquiry] = {}

    # -- before any run ----------------------------------------------------------------------------

    def prepare(self) -> int:
        """Propose claims from every calibration now, so that a run's first episode counts already.

        Returns the number of claims.
        """
        if self._looks is not None:
            return 0  # when they were proposed is recorded
        self._prepared_ns = self._clock()
        for transcoder, calibration in self._calibrations.items():
            self._prepared[transcoder] = self._calibrated(calibration, self._prepared_ns)
        return sum(len(explainer.claims) for explainer in self._prepared.values())

    def _calibrated(self, calibration: Calibration, now_ns: int) -> Explainer:
        explainer = self._explainer(calibration.manifest, calibration.evidence.hook_point)
        explainer.propose(calibration.evidence, now_ns)
        return explainer

    def _explainer(self, manifest: Manifest, hook_point: str) -> Explainer:
        return Explainer(
            manifest.metrics,
            hook_point,
            config=self._config,
            actions=manifest.actions,
            environment=manifest.environment,
            control_hz=manifest.control_hz,
        )

    @property
    def inquiries(self) -> int:
        """Pairs of run and hook point that are known now."""
        return len(self._inquiries)

    @property
    def evidence_bytes(self) -> int:
        """Bytes of all rows that are held, ≤ the configured limit."""
        return sum(one.explainer.evidence_bytes for one in self._inquiries.values())

    # -- events ------------------------------------------------------------------------------------

    def hello(self, manifest: Manifest, transcoders: Mapping[str, str]) -> None:
        """A run begins, or an agent process of it was restarted."""
        self._manifests[manifest.boot_id] = manifest
        for hook_point, transcoder in transcoders.items():
            known = self._inquiries.get((manifest.run_id, hook_point))
            if known is not None and known.transcoder == transcoder:
                known.ended = known.final = False
            else:
                self._announced.setdefault(manifest.run_id, {})[hook_point] = transcoder

    def _begin_announced(self, batch: FeatureBatch, hook_point: str) -> None:
        """Begin the inquiry of a hook point that said hello and whose first rows these are."""
        announced = self._announced.get(batch.run_id)
        manifest = self._manifests.get(batch.boot_id)
        if announced is None or manifest is None or hook_point not in announced:
            return
        self._begin(manifest, hook_point, announced.pop(hook_point), batch.steps.first_seq)
        if not announced:
            del self._announced[batch.run_id]

    def _begin(self, manifest: Manifest, hook_point: str, transcoder: str, first_seq: int) -> None:
        coming = None
        if self._looks is not None:
            coming = self._looks.coming(manifest.run_id, hook_point, transcoder)
        calibration = self._calibrations.get(transcoder)
        fits = calibration is not None and calibration.manifest.metrics == manifest.metrics
        now_ns, explainer = self._prepared_ns, None
        if coming and fits != (coming[0].seq <= first_seq):
            coming = None  # proposed from another calibration, or from none
        if fits and calibration is not None:
            explainer = self._prepared.pop(transcoder, None)
            if explainer is None:
                now_ns = coming.popleft().at_ns if coming else self._clock()
                explainer = self._calibrated(calibration, now_ns)
            explainer.acts_at(manifest.control_hz)
        inquiry = self._inquiries[manifest.run_id, hook_point] = _Inquiry(
            manifest,
            hook_point,
            transcoder,
            explainer or self._explainer(manifest, hook_point),
            calibrated=explainer is not None,
            pacing=Pacing(
                int(self._pace.narrate_s * SECOND_NS), int(self._pace.narrate_gap_s * SECOND_NS)
            ),
            boot_id=manifest.boot_id,
            next_seq=first_seq,
            coming=coming,
        )
        if explainer is not None:
            self._note(inquiry, LookKind.PROPOSE, now_ns)
        self._share_memory()

    def _note(self, inquiry: _Inquiry, kind: LookKind, now_ns: int, *, steps: int = 0) -> None:
        draws = inquiry.explainer.null_draws_done
        inquiry.looks.note(
            kind, inquiry.boot_id, inquiry.next_seq, draws=draws, at_ns=now_ns, steps=steps
        )

    def _share_memory(self) -> None:
        """One limit for all: what is over goes, and the rest have equal parts of it."""
        ended = [(one.final_ns, key) for key, one in self._inquiries.items() if one.final]
        for _, key in sorted(ended)[:-MOST_ENDED]:
            del self._inquiries[key]
        share = self._config.limit_bytes // max(1, len(self._inquiries))
        for inquiry in self._inquiries.values():
            inquiry.explainer.limit_evidence(share)

    def features(self, batch: FeatureBatch) -> None:
        """Take in rows.

        Raises:
            UserError: when the run was never announced, or its metrics do not fit.
        """
        for hook_point in batch.codes:
            self._begin_announced(batch, hook_point)
            inquiry = self._inquiries.get((batch.run_id, hook_point))
            if inquiry is None:
                raise UserError(f"features of run {batch.run_id} arrived before its manifest")
            if inquiry.coming is None:
                self._observe(inquiry, batch)
                continue
            if batch.boot_id != inquiry.boot_id:
                self._take_coming(inquiry)
            for part in cut_at(batch, inquiry.coming):
                self._observe(inquiry, part)
                self._take_coming(inquiry, inquiry.next_seq)
        if len(batch.steps):
            self._newest_ns = max(self._newest_ns, int(batch.steps.time_ns.max()))

    def _observe(self, inquiry: _Inquiry, batch: FeatureBatch) -> None:
        inquiry.explainer.observe(batch)
        inquiry.boot_id = batch.boot_id
        inquiry.next_seq = batch.steps.first_seq + len(batch.steps)
        inquiry.unscored_rows += len(batch.steps)
        inquiry.ended_episodes += int(((batch.steps.flags & EPISODE_END) != 0).sum())
        if inquiry.first_row_ns is None and len(batch.steps):
            inquiry.first_row_ns = int(batch.steps.time_ns[0])
        now = self._clock()
        for trigger in inquiry.watch.take(batch.steps, batch.codes[inquiry.hook_point]):
            inquiry.pacing.offer(trigger, now)

    def alerts(self, document: AlertsDocument) -> None:
        """What the correlator says of a run: news is narrated, drift makes features urgent."""
        for (run_id, hook_point), inquiry in self._inquiries.items():
            if run_id != document.run_id or inquiry.ended:
                continue
            firing = {
                one.rule: one.summary
                for one in document.alerts
                if one.hook_point == hook_point and one.phase == "firing"
            }
            for rule in sorted(firing.keys() - inquiry.firing):
                inquiry.pacing.offer(alert_trigger(rule, firing[rule]), self._clock())
            inquiry.firing = frozenset(firing)
            drifting: dict[int, list[float]] = {}
            for alarm in document.drift:
                feature = _feature_of(alarm.name)
                if alarm.hook_point == hook_point and feature is not None and alarm.bar > 0:
                    drifting.setdefault(feature, []).append(alarm.evidence / alarm.bar)
            inquiry.drifting = drifting

    def goodbye(self, boot_id: str) -> None:
        """A run ended: its claims get a last look."""
        manifest = self._manifests.pop(boot_id, None)
        if manifest is None:
            return
        self._announced.pop(manifest.run_id, None)
        for (run_id, _), inquiry in self._inquiries.items():
            if run_id == manifest.run_id:
                inquiry.ended = True

    # -- work --------------------------------------------------------------------------------------

    def work(self) -> list[Document]:
        """Do one unit of work, if there is any; returns what is to be published of it.

        Inquiries take turns, so that one with endless work cannot starve another.
        """
        for key in [*self._inquiries]:
            inquiry = self._inquiries.pop(key)
            self._inquiries[key] = inquiry
            found = self._work_on(inquiry)
            if found is not None:
                return found
        for explainer in self._prepared.values():
            if self._search_null(explainer):
                break
        return []

    def _work_on(self, inquiry: _Inquiry) -> list[Document] | None:
        """One unit for one inquiry; ``None`` when there is nothing to do for it now."""
        if inquiry.final:
            return None
        if inquiry.coming is not None:
            return self._follow_recorded(inquiry)
        self._split_endless(inquiry)
        if not inquiry.explainer.claims and not self._propose(inquiry):
            return self._finish(inquiry) if inquiry.ended else None
        if not inquiry.ended:
            return self._follow(inquiry)
        if self._search_null(inquiry.explainer):
            return []
        return self._finish(inquiry)

    def _split_endless(self, inquiry: _Inquiry) -> None:
        """Cut a run whose episodes do not end into blocks, so that later ones can judge claims."""
        if inquiry.split_due_seq < 0 or inquiry.next_seq < inquiry.split_due_seq:
            return
        if self._config.block_steps is not None or inquiry.ended_episodes:
            inquiry.split_due_seq = -1
            return
        enough = ENDLESS_AFTER * max(inquiry.manifest.env_count, 1)
        if inquiry.next_seq < enough:
            inquiry.split_due_seq = enough
            return
        steps = block_length(inquiry.explainer.evidence(), EPISODES_TO_PROPOSE_FROM)
        if steps is None:
            inquiry.split_due_seq = inquiry.next_seq * 3 // 2
            return
        self._split(inquiry, steps, self._clock())

    def _split(self, inquiry: _Inquiry, steps: int, now_ns: int) -> None:
        inquiry.explainer.split_every(steps)
        inquiry.split_due_seq = -1
        self._note(inquiry, LookKind.SPLIT, now_ns, steps=steps)

    def _follow(self, inquiry: _Inquiry) -> list[Document] | None:
        """Narrate, rescore or search the null, whichever is due."""
        now, explainer = self._clock(), inquiry.explainer
        turn = inquiry.pacing.turn(now)
        if turn is not None and (turn.trigger is not None or inquiry.unscored_rows):
            return [*self._narration(inquiry, turn)]
        if explainer.due_again():
            return self._propose_again(inquiry, now)
        if inquiry.unscored_rows and now >= inquiry.rescore_due_ns:
            self._rescore(inquiry, now)
            claims = self._claims(inquiry)
            inquiry.rescore_due_ns = self._next(now, self._pace.rescore_s)
            return [claims]
        return [] if self._search_null(explainer) else None

    def _propose_again(self, inquiry: _Inquiry, now_ns: int) -> list[Document]:
        """Propose anew where claims were withdrawn; a language model may word it once more."""
        made = inquiry.explainer.propose_again(now_ns)
        self._note(inquiry, LookKind.AGAIN, now_ns)
        inquiry.asked.difference_update(one.address.index for one in made)
        return [self._claims(inquiry)] if made else []

    def _rescore(self, inquiry: _Inquiry, now_ns: int) -> None:
        inquiry.explainer.rescore(now_ns)
        self._prune(inquiry, now_ns)
        inquiry.watch.watch(
            [c.address.index for c in inquiry.explainer.claims if c.verdict is Verdict.VERIFIED]
        )
        inquiry.unscored_rows = 0
        self._note(inquiry, LookKind.RESCORE, now_ns)

    # -- what was recorded -------------------------------------------------------------------------

    def _follow_recorded(self, inquiry: _Inquiry) -> list[Document] | None:
        """Publish what the recorded looks came to; narrate in the time of the rows."""
        now = self._clock()
        if inquiry.ended:
            self._take_coming(inquiry)
            if not inquiry.final and not inquiry.coming:
                # The recording ends before its last look.
                self._search_null_to(inquiry, inquiry.explainer.null_draws_wanted)
                self._close(inquiry, now)
            if not inquiry.final and not inquiry.untold:
                return None  # the run goes on under another boot
            inquiry.untold = False
            return [*self._last_narration(inquiry), self._claims(inquiry)]
        if inquiry.untold:
            inquiry.untold = False
            return [self._claims(inquiry)]
        turn = inquiry.pacing.turn(now)
        if turn is not None and (turn.trigger is not None or inquiry.unscored_rows):
            return [*self._narration(inquiry, turn)]
        return None

    def _take_coming(self, inquiry: _Inquiry, seq: int | None = None) -> None:
        """Take the looks of this boot that were taken at ``seq`` rows; None: all of them."""
        while inquiry.coming and inquiry.coming[0].boot_id == inquiry.boot_id:
            look = inquiry.coming[0]
            if seq is not None and (look.seq > seq or look.kind == LookKind.FINAL):
                return
            inquiry.coming.popleft()
            self._search_null_to(inquiry, look.draws)
            if look.kind == LookKind.PROPOSE:
                inquiry.explainer.propose(inquiry.explainer.evidence(), look.at_ns)
                self._note(inquiry, LookKind.PROPOSE, look.at_ns)
            elif look.kind == LookKind.SPLIT:
                self._split(inquiry, look.steps, look.at_ns)
            elif look.kind == LookKind.AGAIN:
                self._propose_again(inquiry, look.at_ns)
            elif look.kind == LookKind.RESCORE:
                self._rescore(inquiry, look.at_ns)
            elif look.kind == LookKind.FINAL:
                self._close(inquiry, look.at_ns)
            inquiry.untold = True

    @staticmethod
    def _search_null_to(inquiry: _Inquiry, draws: int) -> None:
        missing = draws - inquiry.explainer.null_draws_done
        if missing > 0:
            inquiry.explainer.search_null(missing)

    def _prune(self, inquiry: _Inquiry, now_ns: int) -> None:
        """Drop the clauses of models and people that later episodes do not support, once a version.

        The built-in's rules were pruned where they were chosen.
        """
        explainer = inquiry.explainer
        for claim in explainer.claims:
            index, scores = claim.address.index, claim.scores
            if claim.verdict is not Verdict.VERIFIED or claim.writer == BUILT_IN:
                continue
            seen = inquiry.pruned.get(index, -1)
            if scores is None or scores.episodes < EPISODES_TO_PRUNE_ON or seen >= claim.version:
                continue
            shorter = explainer.prune(index, now_ns)
            inquiry.pruned[index] = claim.version if shorter is None else shorter.version

    def _search_null(self, explainer: Explainer) -> bool:
        """Search a few more draws; whether there were any to search."""
        before, until = explainer.null_draws_done, self._clock() + self._pace.null_s * SECOND_NS
        for _ in range(self._pace.null_draws_at_once):
            done = explainer.null_draws_done
            if done < explainer.null_draws_wanted:
                explainer.search_null(1)
            if explainer.null_draws_done == done or self._clock() >= until:
                break
        return explainer.null_draws_done > before

    def _next(self, began_ns: int, every_s: float) -> int:
        """When to do it again: at its pace, and never for more than a fifth of the time."""
        took_ns = self._clock() - began_ns
        return began_ns + max(int(every_s * SECOND_NS), 5 * took_ns)

    def _finish(self, inquiry: _Inquiry) -> list[Document]:
        """The last look at a run that has ended."""
        self._close(inquiry, self._clock())
        if not inquiry.explainer.claims:
            return [self._claims(inquiry)]
        return [*self._last_narration(inquiry), self._claims(inquiry)]

    def _close(self, inquiry: _Inquiry, now_ns: int) -> None:
        inquiry.final, inquiry.final_ns = True, now_ns
        if inquiry.explainer.claims:
            inquiry.explainer.rescore(now_ns, last=True)
        self._note(inquiry, LookKind.FINAL, now_ns)

    def _propose(self, inquiry: _Inquiry) -> bool:
        """Propose from the first episodes, once there are enough (or no more will come)."""
        if inquiry.calibrated or inquiry.next_seq < ROWS_TO_PROPOSE_FROM:
            return False
        evidence = inquiry.explainer.evidence()
        if evidence.n_units < EPISODES_TO_PROPOSE_FROM:
            return False
        now = self._clock()
        inquiry.explainer.propose(evidence, now)
        if inquiry.explainer.claims:
            self._note(inquiry, LookKind.PROPOSE, now)
        return bool(inquiry.explainer.claims)

    # -- words -------------------------------------------------------------------------------------

    def profiles_to_write(self, limit: int) -> list[Worded]:
        """Profiles that a language model may word next.

        What people asked for comes first, then the most important: by density, by what shadow
        interventions measured, and by drift. Each feature is asked for once, and once more for a
        person.
        """
        if not self._words:
            return []
        found: list[tuple[bool, float, str, str, int]] = []
        for (run_id, hook_point), inquiry in self._inquiries.items():
            for claim in inquiry.explainer.claims:
                index = claim.address.index
                by_person = index in inquiry.wanted
                new = index not in inquiry.asked and claim.verdict is not Verdict.ABSTAINED
                if (by_person or new) and inquiry.explainer.takes_drafts(index):
                    weight = importance(
                        claim.density or 0.0,
                        _largest_effect(claim),
                        drift_factor(
                            inquiry.drifting.get(index, ()), inquiry.explainer.fall_of(index)
                        ),
                    )
                    found.append((not by_person, -weight, run_id, hook_point, index))
        chosen = []
        for _, weight, run_id, hook_point, index in sorted(found)[:limit]:
            inquiry = self._inquiries[run_id, hook_point]
            by_person = index in inquiry.wanted
            inquiry.wanted.discard(index)
            inquiry.asked.add(index)
            profile = inquiry.explainer.profile(index)
            chosen.append(Worded(run_id, hook_point, profile, -weight, by_person))
        return chosen

    def adopt(self, run_id: str, hook_point: str, feature: int, draft: Draft) -> None:
        """Put a writer's draft through the gate, beside what stands until it is better.

        Where the writer failed or abstained, the rule that is there already says no less, and keeps
        its ledger.
        """
        inquiry = self._inquiries.get((run_id, hook_point))
        if inquiry is None or inquiry.ended:
            return
        if draft.fallback_reason or draft.predicate is None:
            return
        for claim in (*inquiry.explainer.claims, *inquiry.explainer.challengers):
            same = (claim.address.index, claim.writer, claim.predicate)
            if same == (feature, draft.writer, draft.predicate):
                return  # asked for by a person too: saying it twice must not begin its ledger anew
        inquiry.explainer.offer(feature, draft, self._clock())

    def claim_to_judge(self) -> tuple[str, str, Claim, Evidence] | None:
        """A verified claim that no second opinion was asked of, with its held-out rows.

        One at a time, because the rows are many; each version is asked of once.
        """
        for (run_id, hook_point), inquiry in self._inquiries.items():
            for claim in inquiry.explainer.claims:
                index = claim.address.index
                if claim.verdict is Verdict.VERIFIED and inquiry.opined.get(index) != claim.version:
                    inquiry.opined[index] = claim.version
                    held_out = inquiry.explainer.evidence().begun_after(claim.created_ns)
                    return run_id, hook_point, claim, held_out
        return None

    def note_opinion(
        self, run_id: str, hook_point: str, feature: int, version: int, found: Detection
    ) -> None:
        """Show a second opinion with the version that it is of; the verdict does not use it."""
        inquiry = self._inquiries.get((run_id, hook_point))
        if inquiry is not None:
            inquiry.opinions[feature] = version, found

    # -- what people ask ---------------------------------------------------------------------------

    def explainer(self, run_id: str, hook_point: str) -> Explainer:
        """The explainer of one (run, hook point).

        Raises:
            UserError: when there is none.
        """
        return self._inquiry(run_id, hook_point).explainer

    def adopt_by_person(self, run_id: str, hook_point: str, feature: int, draft: Draft) -> Claim:
        """Put a person's draft through the gate, beside the claim that stands until it is better.

        No model is asked for another.

        Raises:
            UserError: when the run is unknown, or has ended: no later episode could verify it.
        """
        inquiry = self._inquiry(run_id, hook_point)
        if inquiry.ended:
            raise UserError(f"run {run_id} has ended; a claim needs later episodes to be checked")
        inquiry.asked.add(feature)
        return inquiry.explainer.challenge(feature, draft, self._clock())

    def word_first(self, run_id: str, hook_point: str, feature: int) -> None:
        """Have a feature's claim worded before all others.

        Raises:
            UserError: when run or feature are unknown, nobody words claims, or it was worded.
        """
        inquiry = self._inquiry(run_id, hook_point)
        if not self._words:
            raise UserError(
                "no language model words claims here; set explainer.writer, or say yourself when "
                "the feature is on"
            )
        found = [one for one in inquiry.explainer.claims if one.address.index == feature]
        if not found:
            raise UserError(f"feature {hook_point}/{feature} has no claim")
        if found[0].writer != BUILT_IN:
            raise UserError(f"feature {hook_point}/{feature} was worded by {found[0].writer}")
        inquiry.wanted.add(feature)

    def _inquiry(self, run_id: str, hook_point: str) -> _Inquiry:
        found = self._inquiries.get((run_id, hook_point))
        if found is None:
            raise UserError(f"no run {run_id!r} with hook point {hook_point!r} is known here")
        return found

    # -- what is shown -----------------------------------------------------------------------------

    def _claims(self, inquiry: _Inquiry) -> ClaimsDocument:
        report = inquiry.explainer.report()
        counts = {name: value for name, value in report["claims"].items() if name != SHARE}
        if counts.get("verified") and inquiry.first_verified_ns is None:
            inquiry.first_verified_ns = self._clock()
        return ClaimsDocument(
            run_id=inquiry.manifest.run_id,
            boot_id=inquiry.manifest.boot_id,
            hook_point=inquiry.hook_point,
            transcoder=inquiry.transcoder,
            claims=[
                {
                    "address": one["address"],
                    "density": one["density"],
                    "eligible": one["eligible"],
                    **one["claim"],
                    "second_opinion": _opinion(inquiry, one["address"], one["claim"]["version"]),
                    "cost": _cost_json(self._cost_of(one["address"])),
                }
                for one in report["features"]
            ],
            counts=counts,
            null={
                "draws": inquiry.explainer.null_draws_done,
                "draws_wanted": inquiry.explainer.null_draws_wanted or self._config.null_draws,
                "kind": "rule search repeated on reassigned episodes, maximum over features",
            },
            writer=self._writer,
            processed_seq=inquiry.next_seq,
            final=inquiry.final,
            published_ns=self._clock(),
            time_to_first_verified_s=_seconds(inquiry.first_row_ns, inquiry.first_verified_ns),
            looks=inquiry.looks.newest(),
        )

    def _last_narration(self, inquiry: _Inquiry) -> Iterator[NarrationDocument]:
        """What there is to say as a run ends, unless something was said just now."""
        turn = inquiry.pacing.turn(self._clock(), last=True)
        if turn is not None:
            yield from self._narration(inquiry, turn)

    def _narration(self, inquiry: _Inquiry, turn: Turn) -> Iterator[NarrationDocument]:
        began = self._clock()
        trigger = turn.trigger
        if trigger is None or trigger.at is None:
            told = inquiry.explainer.narrate(limit=3 if trigger is None else 1)
        else:
            told = inquiry.explainer.narrate(at=trigger.at)
        inquiry.pacing.spoke(turn, began, self._clock(), said=bool(told))
        for one in told:
            inquiry.truth.note(one.truth)
        for one in told:
            yield self._told(inquiry, turn, one)

    def _told(self, inquiry: _Inquiry, turn: Turn, one: Told) -> NarrationDocument:
        lines = [
            NarrationLine(said.text, sentence_json(said)["references"]) for said in one.sentences
        ]
        trigger = turn.trigger
        if trigger is not None:
            text = f"{trigger.text[:1].upper()}{trigger.text[1:]}. {lines[0].text}"
            lines[0] = NarrationLine(text, lines[0].references)
        overall = inquiry.truth.newest
        return NarrationDocument(
            run_id=inquiry.manifest.run_id,
            agent=inquiry.manifest.agent,
            env=one.env,
            episode=one.episode,
            from_t=min(said.first_t for said in one.sentences),
            to_t=max(said.last_t for said in one.sentences),
            lines=lines,
            published_ns=self._clock(),
            trigger=None if trigger is None else NarrationTrigger(trigger.kind, trigger.text),
            truth=NarrationTruth(
                cited=one.truth.cited,
                true=one.truth.true,
                still=one.truth.still,
                rate=overall.rate,
                still_rate=overall.still_rate,
                of=overall.cited,
            ),
        )


SHARE = "verified_share"


def _feature_of(monitor: str) -> int | None:
    """The feature of a monitored number such as ``density:3`` or ``r:3:speed``; None: of none."""
    parts = monitor.split(":")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else None


def _opinion(inquiry: _Inquiry, address: str, version: int) -> dict[str, Any] | None:
    """What a model guessed from the words alone; None where none was asked of this version."""
    of, found = inquiry.opinions.get(FeatureAddress.parse(address).index, (None, None))
    if found is None or of != version:
        return None
    accuracy = found.balanced_accuracy
    return {
        "judge": found.judge,
        "balanced_accuracy": accuracy.value,
        "balanced_accuracy_lo": accuracy.low,
        "balanced_accuracy_hi": accuracy.high,
        "reason": accuracy.reason or None,
        "steps": found.steps,
        "answers": found.asked,
        "failed": found.failed,
    }


def _cost_json(cost: ClaimCost | None) -> dict[str, Any] | None:
    """What a claim has cost; None where no model was asked."""
    if cost is None:
        return None
    return {
        "requests": cost.requests,
        "input_tokens": cost.input_tokens,
        "output_tokens": cost.output_tokens,
        "dollars": cost.dollars,
        "opinion_requests": cost.opinion_requests,
        "opinion_dollars": cost.opinion_dollars,
    }


def _largest_effect(claim: Claim) -> float | None:
    """Size of the largest measured effect on an action; None before any was measured."""
    sizes = [abs(one.effect.value) for one in claim.effects if one.effect.value is not None]
    return max(sizes, default=None)


def _seconds(start_ns: int | None, end_ns: int | None) -> float | None:
    return None if start_ns is None or end_ns is None else (end_ns - start_ns) / SECOND_NS


def calibrations_from(found: Sequence[Calibration]) -> dict[str, Calibration]:
    """Calibrations by the hash of the transcoder they were recorded with."""
    return {one.evidence.transcoder_hash: one for one in found}
