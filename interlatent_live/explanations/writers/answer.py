"""What a model answers: validated against a schema, then parsed, then cleaned; never trusted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interlatent_live.explanations.claims import Clause, ExpectedEffect, Support
from interlatent_live.explanations.predicates import Limits, PredicateError, parse
from interlatent_live.explanations.writers.port import Draft, Usage
from interlatent_live.explanations.writers.prompt import Aliases, as_data

if TYPE_CHECKING:
    from interlatent_live.explanations.predicates import Predicate
    from interlatent_live.explanations.profile import FeatureProfile

_LIMITS: Final = Limits(characters=600, comparisons=6, depth=5, window_steps=200)
MAX_ANSWER: Final = 20_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClauseAnswer(_Strict):
    """One statement with the sub-predicate that checks it."""

    text: str = Field(max_length=300)
    predicate: str | None = None


class EffectAnswer(_Strict):
    """What the feature is expected to do."""

    action: str = Field(max_length=80)
    sign: Literal[-1, 1]


class ClaimAnswer(_Strict):
    """The structured answer to the claim prompt."""

    abstain: bool
    label: str = Field(max_length=120)
    description: str = Field(max_length=600)
    clauses: list[ClauseAnswer] = Field(max_length=4)
    predicate: str | None
    expected_effect: EffectAnswer | None
    confidence: float = Field(ge=0, le=1)


class DetectAnswer(_Strict):
    """The structured answer to the detection prompt."""

    on: list[int] = Field(max_length=200)


class AnswerError(ValueError):
    """An answer that cannot be used; the message is what the model is told for its repair."""


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema in the subset that strict modes accept: all required, no numeric bounds."""
    schema: dict[str, Any] = _plain(model.model_json_schema())
    return schema


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        dropped = {"maxLength", "maxItems", "minimum", "maximum", "default", "title"}
        kept = {
            key: _plain(value)
            for key, value in node.items()
            if key not in dropped or (key == "title" and isinstance(value, dict))
        }
        if isinstance(kept.get("properties"), dict):
            kept["required"] = sorted(kept["properties"])
        return kept
    if isinstance(node, list):
        return [_plain(item) for item in node]
    return node


def read_json(text: str) -> Any:
    """The JSON object in a model's text, code fences and chatter around it allowed.

    Raises:
        AnswerError: when there is none.
    """
    if len(text) > MAX_ANSWER:
        raise AnswerError(f"the answer is longer than {MAX_ANSWER} characters")
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise AnswerError("the answer holds no JSON object")
    try:
        return json.loads(text[start : end + 1])
    except (ValueError, RecursionError) as error:
        raise AnswerError("the answer is not valid JSON") from error


def read_claim(
    text: str,
    profile: FeatureProfile,
    aliases: Aliases,
    *,
    writer: str,
    prompt_hash: str,
    usage: Usage,
) -> Draft:
    """A draft from a model's text.

    Raises:
        AnswerError: when it breaks the schema or its predicate does not parse.
    """
    try:
        answer = ClaimAnswer.model_validate(read_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise AnswerError(f"field {place!r}: {first['msg']}") from error
    predicate = None
    if not answer.abstain:
        if not answer.predicate:
            raise AnswerError("'predicate' is missing although 'abstain' is false")
        predicate = _predicate(answer.predicate, aliases)
    effect = answer.expected_effect
    if effect is not None and profile.actions and effect.action not in profile.actions:
        known = {as_data(action): action for action in profile.actions}
        if effect.action not in known:
            raise AnswerError("'expected_effect.action' is not one of the listed actions")
        effect = effect.model_copy(update={"action": known[effect.action]})
    draft = Draft(
        label=as_data(answer.label, 80) or "unnamed",
        description=as_data(answer.description, 400),
        clauses=tuple(_clause(clause, aliases) for clause in answer.clauses),
        predicate=predicate,
        writer=writer,
        prompt_hash=prompt_hash,
        confidence=answer.confidence,
        usage=usage,
    )
    if effect is None:
        return draft
    return replace(draft, expected_effect=ExpectedEffect(as_data(effect.action), effect.sign))


def _predicate(text: str, aliases: Aliases) -> Predicate:
    try:
        return aliases.reveal(parse(text, aliases.specs, limits=_LIMITS))
    except PredicateError as error:
        raise AnswerError(str(error)) from error


def _clause(clause: ClauseAnswer, aliases: Aliases) -> Clause:
    text = as_data(clause.text, 200)
    if not clause.predicate:
        return Clause(text, Support.NOTHING)
    return Clause(text, Support.PREDICATE, _predicate(clause.predicate, aliases))
