"""Money, tokens and requests with hard limits, and a breaker for servers that fail.

A request is reserved at its largest possible cost before it is sent and settled at its real cost
afterwards, so that the spend never passes its limit, not even by requests in flight. The limit on
money is 0 until somebody sets it: a model with a price is then never called, one without a price
(local) is. Time comes in as an argument; nothing here reads a clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from interlatent_live.errors import UserError
from interlatent_live.explanations.writers.port import Usage

_HOUR_S: Final = 3600.0


class BudgetError(UserError):
    """A request that a limit refuses; nothing was sent."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens; zero for a server of one's own."""

    input_per_million: float = 0.0
    output_per_million: float = 0.0

    def of(self, usage: Usage) -> float:
        """Dollars for some usage."""
        return (
            usage.input_tokens * self.input_per_million
            + usage.output_tokens * self.output_per_million
        ) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits; money over the life of the process, the others per hour."""

    dollars: float = 0.0
    requests_per_hour: int = 600
    tokens_per_hour: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Reservation:
    """The most that one request may cost."""

    at_s: float
    usage: Usage
    dollars: float


@dataclass(slots=True)
class Budget:
    """What was spent and what is promised; one per process.

    ``price`` is the price list of the model in use; whoever names a hosted model names its price.
    """

    limits: Limits = field(default_factory=Limits)
    price: Price = field(default_factory=Price)
    spent_dollars: float = 0.0
    spent: Usage = field(default_factory=Usage)
    _reserved: list[Reservation] = field(default_factory=list)
    _recent: deque[tuple[float, int, int]] = field(default_factory=deque)

    def reserve(self, input_tokens: int, output_tokens: int, now_s: float) -> Reservation:
        """Promise one request at its largest cost.

        Raises:
            BudgetError: when it might pass a limit.
        """
        while self._recent and self._recent[0][0] <= now_s - _HOUR_S:
            self._recent.popleft()
        most = Usage(input_tokens, output_tokens, 1)
        dollars = self.price.of(most)
        promised = sum(reservation.dollars for reservation in self._reserved)
        if dollars > 0 and self.spent_dollars + promised + dollars > self.limits.dollars:
            raise BudgetError(
                f"a request of up to ${dollars:.4f} might pass the limit of "
                f"${self.limits.dollars:.2f}; raise the explainer's money limit to allow it"
            )
        requests = sum(entry[1] for entry in self._recent) + len(self._reserved)
        if requests + 1 > self.limits.requests_per_hour:
            raise BudgetError(
                f"the limit of {self.limits.requests_per_hour} requests an hour is reached"
            )
        tokens = sum(entry[2] for entry in self._recent) + sum(
            r.usage.input_tokens + r.usage.output_tokens for r in self._reserved
        )
        if tokens + input_tokens + output_tokens > self.limits.tokens_per_hour:
            raise BudgetError(
                f"the limit of {self.limits.tokens_per_hour} tokens an hour is reached"
            )
        reservation = Reservation(now_s, most, dollars)
        self._reserved.append(reservation)
        return reservation

    def settle(self, reservation: Reservation, usage: Usage | None, now_s: float) -> None:
        """Book the real cost; ``None`` when the server never said, which counts as the most."""
        self._reserved.remove(reservation)
        real = reservation.usage if usage is None else usage
        self.spent = self.spent.plus(real)
        self.spent_dollars += self.price.of(real)
        self._recent.append((now_s, 1, real.input_tokens + real.output_tokens))


@dataclass(slots=True)
class CircuitBreaker:
    """Stops asking a server that fails: open after ``failures`` in a row, then one try at a time.

    The wait doubles with each failed try, from ``wait_s`` to ``longest_s``.
    """

    failures: int = 3
    wait_s: float = 5.0
    longest_s: float = 300.0
    _in_a_row: int = 0
    _open_until_s: float = 0.0
    _trying: bool = False

    def allows(self, now_s: float) -> bool:
        """Whether a request may be sent now; when half open, only one at a time."""
        if self._in_a_row < self.failures:
            return True
        if now_s < self._open_until_s or self._trying:
            return False
        self._trying = True
        return True

    def released(self) -> None:
        """What was allowed was not sent after all."""
        self._trying = False

    def succeeded(self) -> None:
        """The server answered."""
        self._in_a_row, self._trying = 0, False

    def failed(self, now_s: float, retry_after_s: float = 0.0) -> None:
        """The server failed, refused or was too slow."""
        self._in_a_row += 1
        self._trying = False
        if self._in_a_row >= self.failures or retry_after_s > 0:
            self._in_a_row = max(self._in_a_row, self.failures)
            over = self._in_a_row - self.failures
            wait = min(self.wait_s * 2**over, self.longest_s)
            self._open_until_s = now_s + max(wait, min(retry_after_s, self.longest_s))
