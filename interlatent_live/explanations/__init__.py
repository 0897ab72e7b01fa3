"""Predicates, rules, claims, verification, writers and the narrator, all without sockets."""

from interlatent_live.explanations.claims import (
    Claim,
    ClaimEvent,
    Clause,
    ExpectedEffect,
    Support,
    claim_counts,
    claim_json,
)
from interlatent_live.explanations.evidence import (
    Coverage,
    Evidence,
    EvidenceStore,
    collect_evidence,
)
from interlatent_live.explanations.explainer import Explainer, ExplainerConfig
from interlatent_live.explanations.narrator import (
    NarrationQuality,
    Narrator,
    Reference,
    Sentence,
    measure,
    sentence_json,
)
from interlatent_live.explanations.nulls import NullKind, NullModel, NullResult
from interlatent_live.explanations.predicates import Predicate, PredicateError, parse
from interlatent_live.explanations.rules import Rule, induce_rules
from interlatent_live.explanations.scores import Interval, Scores, score
from interlatent_live.explanations.search import PLAIN_TERMS, TermFamilies
from interlatent_live.explanations.verification import Judgement, Verdict, judge
from interlatent_live.explanations.writers import BuiltInWriter, Draft, Usage, Writer

__all__ = [
    "PLAIN_TERMS",
    "BuiltInWriter",
    "Claim",
    "ClaimEvent",
    "Clause",
    "Coverage",
    "Draft",
    "Evidence",
    "EvidenceStore",
    "ExpectedEffect",
    "Explainer",
    "ExplainerConfig",
    "Interval",
    "Judgement",
    "NarrationQuality",
    "Narrator",
    "NullKind",
    "NullModel",
    "NullResult",
    "Predicate",
    "PredicateError",
    "Reference",
    "Rule",
    "Scores",
    "Sentence",
    "Support",
    "TermFamilies",
    "Usage",
    "Verdict",
    "Writer",
    "claim_counts",
    "claim_json",
    "collect_evidence",
    "induce_rules",
    "judge",
    "measure",
    "parse",
    "score",
    "sentence_json",
]
