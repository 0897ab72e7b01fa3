"""Everything that writers with a language model share; the SDKs are thin adapters below it.

One request, one repair when the answer cannot be used, then the built-in writer. Each request is
reserved against the budget and let through by the breaker first, has one deadline, and is not
retried here or by the SDK: the scheduler asks again when there is reason to.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from interlatent_live.explanations.budget import Budget, BudgetError, CircuitBreaker
from interlatent_live.explanations.writers.answer import (
    AnswerError,
    ClaimAnswer,
    read_claim,
    read_json,
    schema_of,
)
from interlatent_live.explanations.writers.builtin import state_rule
from interlatent_live.explanations.writers.port import Draft, Usage
from interlatent_live.explanations.writers.prompt import (
    Aliases,
    claim_data,
    delimited,
    load_prompt,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.explanations.profile import FeatureProfile

MAX_OUTPUT_TOKENS: Final = 900
_CHARACTERS_PER_TOKEN: Final = 2
"""Few, so that a reservation is never too small."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation; ``role`` is ``"user"`` or ``"assistant"``."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back."""

    text: str
    usage: Usage | None
    """None when the server did not say."""
    complete: bool = True
    """False when the answer was cut or refused; ``text`` then says which."""


class CompletionError(Exception):
    """No usable answer came back: dead, slow, limited or broken."""

    def __init__(self, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.usage = Usage()
        """What was booked for the request; the most it may have used where nobody said."""


class Completer(Protocol):
    """One model behind one SDK."""

    @property
    def name(self) -> str:
        """Such as ``"openai:gpt-5"``."""
        ...

    async def complete(
        self,
        system: str,
        messages: list[Message],
        schema: dict[str, Any] | None,
        max_tokens: int,
    ) -> Completion:
        """One request; ``schema`` asks for structured output where given.

        Raises:
            CompletionError: for everything that a server or a network does.
        """
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...


def usable(answer: Completion) -> str:
    """The text of a complete answer.

    Raises:
        AnswerError: when it was cut or refused.
    """
    if not answer.complete:
        raise AnswerError(answer.text)
    return answer.text


@dataclass(frozen=True, slots=True)
class Capability:
    """What the probe found out."""

    reachable: bool
    structured: bool
    """The server honours a JSON schema; else the schema is only in the prompt."""
    detail: str


class LlmWriter:
    """A writer with a language model behind a :class:`Completer`."""

    def __init__(
        self,
        completer: Completer,
        *,
        budget: Budget | None = None,
        breaker: CircuitBreaker | None = None,
        deadline_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget or Budget()
        self.breaker = breaker or CircuitBreaker()
        self._completer = completer
        self._deadline_s = deadline_s
        self._clock = clock
        self._structured = True

    @property
    def name(self) -> str:
        """The completer's name."""
        return self._completer.name

    async def probe(self) -> Capability:
        """One tiny request: is the server there, and does it honour a schema?"""
        schema = {
            "type": "object",
            "properties": {"ready": {"type": "boolean"}},
            "required": ["ready"],
            "additionalProperties": False,
        }
        ask = [Message("user", 'Answer with the JSON object {"ready": true} and nothing else.')]
        try:
            answer = await self.ask("You answer in JSON.", ask, schema, 50)
        except (CompletionError, BudgetError) as error:
            if isinstance(error, CompletionError) and error.reason == "refused by the server":
                return await self._probe_plain(ask)
            return Capability(reachable=False, structured=False, detail=str(error))
        try:
            good = isinstance(read_json(answer.text).get("ready"), bool)
        except (AnswerError, AttributeError):
            good = False
        self._structured = good
        detail = "honours a JSON schema" if good else "ignores a JSON schema; the prompt carries it"
        return Capability(reachable=True, structured=good, detail=detail)

    async def _probe_plain(self, ask: list[Message]) -> Capability:
        self._structured = False
        try:
            await self.ask("You answer in JSON.", ask, None, 50)
        except (CompletionError, BudgetError) as error:
            return Capability(reachable=False, structured=False, detail=str(error))
        return Capability(
            reachable=True, structured=False, detail="knows no JSON schema; the prompt carries it"
        )

    async def write(self, profile: FeatureProfile) -> Draft:
        """A claim; after one repair, or without an answer, the built-in's."""
        prompt, aliases = load_prompt("claim"), Aliases.of(profile)
        conversation = [Message("user", delimited(prompt, claim_data(profile, aliases)))]
        schema = schema_of(ClaimAnswer)
        usage, problem = Usage(), ""
        for attempt in range(2):
            try:
                answer = await self.ask(prompt.system, conversation, schema, MAX_OUTPUT_TOKENS)
            except BudgetError as error:
                return replace(state_rule(profile.rule, str(error)), usage=usage)
            except CompletionError as error:
                spent = usage.plus(error.usage)
                return replace(state_rule(profile.rule, str(error)), usage=spent)
            usage = usage.plus(answer.usage or Usage())
            try:
                return read_claim(
                    usable(answer),
                    profile,
                    aliases,
                    writer=self.name,
                    prompt_hash=prompt.hash,
                    usage=usage,
                )
            except AnswerError as error:
                problem = str(error)
            if attempt == 0:
                repair = load_prompt("repair").fill(problem=problem)
                conversation += [Message("assistant", answer.text or "(nothing)")]
                conversation += [Message("user", repair)]
        return replace(state_rule(profile.rule, f"no usable answer: {problem}"), usage=usage)

    async def ask(
        self,
        system: str,
        messages: list[Message],
        schema: dict[str, Any] | None,
        max_tokens: int,
    ) -> Completion:
        """One guarded request; the completion's usage is what was booked for it.

        Raises:
            BudgetError: a limit refused it; nothing was sent.
            CompletionError: the breaker is open, or no answer came in time.
        """
        if not self.breaker.allows(self._clock()):
            raise CompletionError("breaker", f"{self.name} failed repeatedly; waiting to try again")
        length = len(system) + sum(len(message.text) for message in messages) + 2000
        try:
            reservation = self.budget.reserve(
                length // _CHARACTERS_PER_TOKEN, max_tokens, self._clock()
            )
        except BudgetError:
            self.breaker.released()
            raise
        # What the server never said counts as the most it can have been.
        usage = reservation.usage
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await self._completer.complete(
                    system, messages, schema if self._structured else None, max_tokens
                )
            usage = answer.usage or usage
        except TimeoutError as error:
            self.breaker.failed(self._clock())
            late = CompletionError(
                "too slow", f"{self.name} did not answer within {self._deadline_s:g} s"
            )
            late.usage = usage
            raise late from error
        except CompletionError as error:
            if error.reason == "unsent":
                usage = Usage()
            error.usage = usage
            self.breaker.failed(self._clock(), error.retry_after_s)
            raise
        except asyncio.CancelledError:
            self.breaker.released()
            raise
        finally:
            self.budget.settle(reservation, usage, self._clock())
        self.breaker.succeeded()
        return replace(answer, usage=usage)

    async def aclose(self) -> None:
        """Close the completer."""
        await self._completer.aclose()
