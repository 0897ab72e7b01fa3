"""Claims by people: typed predicates that go through the same gate as everybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interlatent_live.errors import UserError
from interlatent_live.explanations.claims import Clause, Support
from interlatent_live.explanations.predicates import parse, to_english
from interlatent_live.explanations.writers.builtin import clauses_of, label_of
from interlatent_live.explanations.writers.port import Draft
from interlatent_live.explanations.writers.prompt import as_data

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interlatent_live.stream import MetricSpec


_MARK: Final = "person:"


def by_person(writer: str) -> bool:
    """Whether a writer's name is a person's."""
    return writer.startswith(_MARK)


def draft_by_person(
    text: str,
    specs: Iterable[MetricSpec],
    *,
    person: str,
    label: str = "",
    description: str = "",
) -> Draft:
    """A person's claim; the predicate is checked now, the rest by the stream.

    Raises:
        PredicateError: with the position of the first mistake.
        UserError: without a person's name.
    """
    name = as_data(person)
    if not name:
        raise UserError("a claim by a person needs the person's name")
    predicate = parse(text, specs)
    clauses = [Clause(to_english(part), Support.PREDICATE, part) for part in clauses_of(predicate)]
    words = as_data(description, 400)
    if words:
        clauses.append(Clause(words, Support.NOTHING))
    return Draft(
        label=as_data(label, 80) or label_of(predicate),
        description=words or f"On when {to_english(predicate)}.",
        clauses=tuple(clauses),
        predicate=predicate,
        writer=f"{_MARK}{name}",
        prompt_hash="",
    )
