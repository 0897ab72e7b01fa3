"""The port behind which words are found: one profile in, one draft out.

A draft is a proposal and nothing more; what is shown as verified is decided by the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from interlatent_live.explanations.claims import Clause, ExpectedEffect
    from interlatent_live.explanations.predicates import Predicate
    from interlatent_live.explanations.profile import FeatureProfile


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost, in tokens; money is computed from a price list."""

    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.requests + other.requests,
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """What a writer proposes; ``predicate`` is None when it abstains."""

    label: str
    description: str
    clauses: tuple[Clause, ...]
    predicate: Predicate | None
    writer: str
    prompt_hash: str
    expected_effect: ExpectedEffect | None = None
    confidence: float | None = None
    usage: Usage = Usage()
    fallback_reason: str = ""
    """Why another writer than the chosen one wrote this."""


class Writer(Protocol):
    """Turns profiles into drafts; one instance serves one event loop and is closed at its end."""

    @property
    def name(self) -> str:
        """What is shown as the author, such as ``"built-in (no LLM)"`` or ``"openai:gpt-5"``."""
        ...

    async def write(self, profile: FeatureProfile) -> Draft:
        """A draft for the profile; never raises for what a server does, it falls back."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
