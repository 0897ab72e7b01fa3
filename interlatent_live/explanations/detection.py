"""Explanation detection score: told only the words, can a model find the steps that are on?

An optional second opinion (Paulo et al., "Automatically Interpreting Millions of Features", 2024,
§3.2, there for text). It judges the words where the predicate's score judges the predicate; its
steps come from held-out episodes, half of them on, each from an episode of its own as far as there
are enough, so that neighbours in time do not give each other away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import ValidationError

from interlatent_live.explanations.budget import BudgetError
from interlatent_live.explanations.scores import Interval, balanced_accuracy_interval, unit_counts
from interlatent_live.explanations.writers.answer import (
    AnswerError,
    DetectAnswer,
    read_json,
    schema_of,
)
from interlatent_live.explanations.writers.llm import CompletionError, Message, usable
from interlatent_live.explanations.writers.port import Usage
from interlatent_live.explanations.writers.prompt import as_data, delimited, load_prompt
from interlatent_live.stream import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.explanations.claims import Claim
    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.explanations.writers.llm import LlmWriter

STEPS_PER_PROMPT: Final = 20


@dataclass(frozen=True, slots=True)
class Detection:
    """How well the words alone tell on from off."""

    balanced_accuracy: Interval
    steps: int
    asked: int
    """Requests that gave a usable answer."""
    failed: int
    judge: str
    usage: Usage = Usage()  # noqa: RUF009 - a frozen value
    """What asking has cost, answers that could not be used included."""
    refused: str = ""
    """Why a limit ended the asking; empty where none did."""


async def detect(
    judge: LlmWriter, claim: Claim, held_out: Evidence, *, prompts: int = 4, seed: int = 0
) -> Detection:
    """Ask ``prompts`` times about fresh steps and score the guesses.

    The predicate itself is not shown. Where a limit refuses a request, no more are asked, and the
    guesses that came are scored.
    """
    random = np.random.default_rng([seed, claim.address.index])
    prompt, schema = load_prompt("detect"), schema_of(DetectAnswer)
    truth: list[NDArray[np.bool_]] = []
    guess: list[NDArray[np.bool_]] = []
    units: list[NDArray[np.int64]] = []
    failed, usage, refused = 0, Usage(), ""
    for _ in range(prompts):
        rows, on = sample_steps(held_out, claim.address.index, STEPS_PER_PROMPT, random)
        if len(rows) == 0:
            break
        text = delimited(prompt, _data(claim, held_out, rows))
        try:
            answer = await judge.ask(prompt.system, [Message("user", text)], schema, 300)
        except BudgetError as error:
            refused = str(error)
            break
        except CompletionError as error:
            usage, failed = usage.plus(error.usage), failed + 1
            continue
        usage = usage.plus(answer.usage or Usage())
        try:
            named = DetectAnswer.model_validate(read_json(usable(answer))).on
        except (AnswerError, ValidationError):
            failed += 1
            continue
        said = np.isin(np.arange(1, len(rows) + 1), named)
        truth.append(on)
        guess.append(said)
        units.append(held_out.unit[rows].astype(np.int64))
    if not truth:
        nothing = Interval(None, reason=refused or "no usable answer")
        return Detection(nothing, 0, 0, failed, judge.name, usage, refused)
    all_units = np.concatenate(units)
    _, unit = np.unique(all_units, return_inverse=True)
    counts = unit_counts(np.concatenate(guess), np.concatenate(truth), unit, int(unit.max()) + 1)
    accuracy = balanced_accuracy_interval(counts)
    return Detection(accuracy, len(unit), len(truth), failed, judge.name, usage, refused)


def sample_steps(
    evidence: Evidence, feature: int, count: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Up to ``count`` rows in random order, half of them on, spread over episodes."""
    on = evidence.on(feature)
    picks = []
    for side in (True, False):
        rows = np.flatnonzero((on == side) & evidence.scored)
        rows = random.permutation(rows)
        # The first row of each episode in a random order comes before the second of any.
        _, first, inverse = np.unique(evidence.unit[rows], return_index=True, return_inverse=True)
        order = np.argsort(np.where(np.isin(np.arange(len(rows)), first), 0, 1), kind="stable")
        picks.append(rows[order][: count // 2] if len(inverse) else rows)
    chosen = np.concatenate(picks).astype(np.int64)
    chosen = random.permutation(chosen)
    return chosen, on[chosen]


def _data(claim: Claim, evidence: Evidence, rows: NDArray[np.int64]) -> dict[str, Any]:
    shown = [
        index for index, spec in enumerate(evidence.specs) if spec.role in (Role.STATE, Role.CLOCK)
    ]
    return {
        "claim": as_data(f"{claim.label}. {claim.description}", 500),
        "metrics": [
            {"name": as_data(evidence.specs[i].name), "unit": as_data(evidence.specs[i].unit, 16)}
            for i in shown
        ],
        "steps": [
            {"step": number, "metrics": [_number(evidence.metrics[row, i]) for i in shown]}
            for number, row in enumerate(rows, 1)
        ],
    }


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None
