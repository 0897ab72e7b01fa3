"""What the agent is doing now, in sentences that rest on verified, active features only.

A sentence is chosen for a window of the agent's last steps: its claim is verified, its predicate
and its feature both hold in at least 80 % of the window, and it is not true nearly always. Of a
predicate "A or B" only the part that holds is said, which says more and implies the whole. Several
lengths of window are tried, and what is rarest is said, what was said a moment ago last. The
sentence names its features and the metric values it rests on, and its references resolve to claims;
nothing else is said. Its truth is measured afterwards, on the window and at other times of the same
run (:func:`measure`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.explanations.predicates import (
    Or,
    Predicate,
    evaluate,
    metric_names,
    to_english,
    to_text,
)
from interlatent_live.explanations.verification import Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    from interlatent_live.explanations.claims import Claim
    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.explanations.triggers import Moment

WINDOWS: Final = (100, 50, 25, 12)
HOLDS_SHARE: Final = 0.8
TRIVIAL_SHARE: Final = 0.9
_SENTENCES: Final = 3
_REPEATED: Final = 16.0
"""How much rarer what was said a moment ago must be than something new."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a sentence rests on: one claim, with how it stood in the window."""

    address: str
    claim_version: int
    said: str
    """The part of the claim's predicate that the sentence says, canonical text."""
    held: float
    """Share of the window in which predicate and feature both held."""
    values: tuple[tuple[str, float, str], ...]
    """(metric, mean over the window, unit)."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One true thing about a window of steps of one agent copy."""

    text: str
    references: tuple[Reference, ...]
    env: int
    episode: int
    first_t: int
    last_t: int
    start_ns: int
    end_ns: int
    common: float = 1.0
    """Share of all windows of which the same could be said, with what was said beside it."""

    @property
    def keys(self) -> tuple[tuple[str, int, str], ...]:
        """What was said: (address, claim version, canonical text), by reference."""
        return tuple((one.address, one.claim_version, one.said) for one in self.references)


@dataclass(frozen=True, slots=True)
class NarrationQuality:
    """How true a run's sentences were; ``None`` where there was nothing to measure."""

    sentences: int
    true_share: float | None
    """Sentences whose predicate and features held in ≥ 80 % of their window."""
    elsewhere_share: float | None
    """The same sentences at random other windows of the same length."""
    matcher_share: float | None
    """How often the narrated window is told from 4 others by what was said of it (chance 20 %).

    By predicates and features alone; the metric values named would give the window away.
    """
    coverage: float
    """Share of intervals with a sentence."""
    references_resolve: bool


def sentence_json(sentence: Sentence) -> dict[str, Any]:
    """A sentence as feeds and reports show it."""
    return {
        "text": sentence.text,
        "env": sentence.env,
        "episode": sentence.episode,
        "first_t": sentence.first_t,
        "last_t": sentence.last_t,
        "start_ns": sentence.start_ns,
        "end_ns": sentence.end_ns,
        "references": [
            {
                "address": reference.address,
                "claim_version": reference.claim_version,
                "said": reference.said,
                "held": reference.held,
                "metrics": [
                    {"name": name, "value": value, "unit": unit}
                    for name, value, unit in reference.values
                ],
            }
            for reference in sentence.references
        ],
    }


@dataclass(frozen=True, slots=True)
class _Statement:
    """One thing that may be said: a claim, and the part of its predicate that holds."""

    claim: Claim
    said: Predicate

    @property
    def key(self) -> tuple[str, int, str]:
        return str(self.claim.address), self.claim.version, to_text(self.said)


class Narrator:
    """Chooses sentences for windows; the claims' truth over the evidence is computed once.

    ``windows`` are lengths in steps, tried from the longest; ``seconds_per_step`` only words them.
    """

    def __init__(
        self,
        evidence: Evidence,
        claims: Sequence[Claim],
        *,
        windows: Sequence[int] = WINDOWS,
        seconds_per_step: float | None = None,
    ) -> None:
        self._evidence = evidence
        self._windows = sorted(windows, reverse=True)
        self._seconds = seconds_per_step
        self._statements: list[_Statement] = []
        held = []
        columns = evidence.columns()
        for claim in claims:
            if claim.verdict is not Verdict.VERIFIED or claim.predicate is None:
                continue
            on = evidence.on(claim.address.index)
            for said in _parts(claim.predicate):
                truth = evaluate(said, columns).holds
                if truth[evidence.scored].mean() > TRIVIAL_SHARE:
                    continue
                self._statements.append(_Statement(claim, said))
                held.append(truth & on)
        self._index = {statement.key: i for i, statement in enumerate(self._statements)}
        self._whole = np.array(
            [isinstance(statement.said, Or) for statement in self._statements], bool
        )
        self._held = np.array(held, bool).reshape(len(held), len(evidence))
        self._windows_held: dict[int, NDArray[np.bool_]] = {}
        # Sums over any window in two look-ups.
        self._sum = np.concatenate(
            [np.zeros((len(held), 1), np.int64), np.cumsum(self._held, axis=1)], axis=1
        )

    def narrate_at(
        self, row: int, recent: Collection[tuple[str, int, str]] = ()
    ) -> tuple[Sentence, ...]:
        """Sentences for the window that ends at a row.

        Of all lengths that have any, the one whose sentences together are rarest tells most; the
        longest wins ties. ``recent`` are the :attr:`Sentence.keys` of what was said a moment ago:
        it is said again only where there is nothing else of note.
        """
        best: tuple[float, int, list[int]] | None = None
        for length in self._windows:
            if self._evidence.past[row] < length - 1:
                continue
            chosen = self._chosen(row, length, recent)
            if not chosen:
                continue
            common = self.rarity(chosen, length)
            if all(self._statements[index].key in recent for index in chosen):
                common *= _REPEATED
            if best is None or common < best[0]:
                best = (common, length, chosen)
        if best is None:
            return ()
        common, length, chosen = best
        return tuple(self._sentence(index, row, length, common) for index in chosen)

    def rarity(self, statements: Sequence[int], length: int) -> float:
        """Share of windows of this length of which all the statements could be said."""
        return float(self._holding(length)[list(statements)].all(0).mean())

    def latest_rows(self) -> NDArray[np.int64]:
        """The newest row of each agent copy, newest first."""
        evidence = self._evidence
        copies = evidence.unit_key[evidence.unit][:, :2]
        order = np.argsort(-evidence.time_ns, kind="stable")
        _, first = np.unique(copies[order], axis=0, return_index=True)
        return order[np.sort(first)]

    def rows_at(self, moment: Moment) -> NDArray[np.int64]:
        """The row of one step of a copy's newest boot; empty where it is not held."""
        evidence = self._evidence
        key = evidence.unit_key[evidence.unit]
        rows = np.flatnonzero(
            (evidence.t == moment.t) & (key[:, 1] == moment.env) & (key[:, 2] == moment.episode)
        )
        return rows[np.argsort(-key[rows, 0], kind="stable")][:1]

    def held_share(self, statement: int, row: int, length: int) -> float:
        """Share of the window ending at ``row`` in which statement and feature hold."""
        total = self._sum[statement, row + 1] - self._sum[statement, row + 1 - length]
        return float(total) / length

    def _chosen(self, row: int, length: int, recent: Collection[tuple[str, int, str]]) -> list[int]:
        if not self._statements:
            return []
        share = (self._sum[:, row + 1] - self._sum[:, row + 1 - length]) / length
        candidates = np.flatnonzero(share >= HOLDS_SHARE)
        # The rarest is the most telling, and a part of a claim before the whole of it; what says
        # the same thing again, by its metrics or by its feature, is left out.
        common = self._holding(length)[candidates].mean(1)
        keys = [self._statements[i].key for i in candidates]
        common *= np.where([key in recent for key in keys], _REPEATED, 1.0)
        chosen: list[int] = []
        spoken: set[tuple[str, ...]] = set()
        for index in candidates[np.lexsort((common, self._whole[candidates]))]:
            statement = self._statements[index]
            names = (metric_names(statement.said), (statement.key[0],))
            if not spoken.isdisjoint(names):
                continue
            spoken.update(names)
            chosen.append(int(index))
        return chosen[:_SENTENCES]

    def _holding(self, length: int) -> NDArray[np.bool_]:
        """[claims, windows] which claims could be narrated of each window of this length."""
        if length not in self._windows_held:
            ends = np.flatnonzero(self._evidence.past >= length - 1)
            total = self._sum[:, ends + 1] - self._sum[:, ends + 1 - length]
            self._windows_held[length] = total >= HOLDS_SHARE * length
        return self._windows_held[length]

    def _sentence(self, index: int, row: int, length: int, common: float) -> Sentence:
        evidence, statement = self._evidence, self._statements[index]
        claim = statement.claim
        rows = slice(row + 1 - length, row + 1)
        columns = evidence.columns()
        units = {spec.name: spec.unit for spec in evidence.specs}
        values = tuple(
            (name, float(np.nanmean(columns.column(name)[rows])), units[name])
            for name in metric_names(statement.said)
        )
        held = self.held_share(index, row, length)
        reference = Reference(*statement.key, held, values)
        key = evidence.unit_key[evidence.unit[row]]
        when = f"{length} steps" if self._seconds is None else f"{length * self._seconds:.2g} s"
        facts = " and ".join(f"{value:.3g} {unit}".rstrip() for _, value, unit in values)
        # The predicate in English, not the writer's words: only the predicate was verified.
        return Sentence(
            f"For the last {when}, {to_english(statement.said)} "
            f"(on average {facts}) [feature {claim.address.hook_point}/{claim.address.index}].",
            (reference,),
            int(key[1]),
            int(key[2]),
            int(evidence.t[rows.start]),
            int(evidence.t[row]),
            int(evidence.time_ns[rows.start]),
            int(evidence.time_ns[row]),
            common,
        )

    def statement_index(self, reference: Reference) -> int | None:
        """Which of the statements a reference means; None when it resolves to none."""
        return self._index.get((reference.address, reference.claim_version, reference.said))


def _parts(predicate: Predicate) -> tuple[Predicate, ...]:
    """What may be said of a claim: each alternative of an outermost *or*, and the whole."""
    return (*predicate.operands, predicate) if isinstance(predicate, Or) else (predicate,)


def measure(
    narrator: Narrator, evidence: Evidence, interval: int, seed: int = 0
) -> NarrationQuality:
    """Narrate every ``interval`` steps of the evidence and measure as docs/explanations.md says."""
    random = np.random.default_rng(seed)
    moments = np.flatnonzero((evidence.t + 1) % interval == 0)
    true, elsewhere, matched = [], [], []
    covered, resolve = 0, True
    for row in moments:
        sentences = narrator.narrate_at(int(row))
        if not sentences:
            continue
        covered += 1
        length = sentences[0].last_t - sentences[0].first_t + 1
        others = _other_rows(evidence, int(row), length, random)
        spoken = []
        for sentence in sentences:
            found = [narrator.statement_index(reference) for reference in sentence.references]
            claims = [index for index in found if index is not None]
            resolve &= len(claims) == len(found)
            spoken.append(claims)
            true.append(_joint(narrator, claims, int(row), length) >= HOLDS_SHARE)
            if others:
                elsewhere.append(_joint(narrator, claims, others[0], length) >= HOLDS_SHARE)
        if len(others) == 4:
            fits = [
                float(np.mean([_joint(narrator, claims, at, length) for claims in spoken]))
                for at in (int(row), *others)
            ]
            matched.append(_match(fits[0], fits[1:], random))
    return NarrationQuality(
        sentences=len(true),
        true_share=float(np.mean(true)) if true else None,
        elsewhere_share=float(np.mean(elsewhere)) if elsewhere else None,
        matcher_share=float(np.mean(matched)) if matched else None,
        coverage=covered / len(moments) if len(moments) else 0.0,
        references_resolve=resolve,
    )


def _joint(narrator: Narrator, claims: Sequence[int], row: int, length: int) -> float:
    return min((narrator.held_share(index, row, length) for index in claims), default=0.0)


def _other_rows(evidence: Evidence, row: int, length: int, random: Generator) -> list[int]:
    """Up to four windows of the same length that do not overlap this one."""
    enough = np.flatnonzero(evidence.past >= length - 1)
    apart = enough[np.abs(enough - row) >= length]
    if len(apart) < 4:
        return [int(x) for x in apart]
    return [int(x) for x in random.choice(apart, 4, replace=False)]


def _match(here: float, there: Sequence[float], random: Generator) -> bool:
    """The matcher takes the window in which what was said holds most, ties at random."""
    best = max(there)
    if here != best:
        return here > best
    return bool(random.random() < 1 / (1 + sum(share == best for share in there)))
