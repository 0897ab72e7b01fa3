"""The writer that a configuration names; nothing is sent anywhere unless it was chosen by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from interlatent_live.errors import UserError
from interlatent_live.explanations.budget import Budget, Price
from interlatent_live.explanations.writers.builtin import BuiltInWriter
from interlatent_live.explanations.writers.llm import LlmWriter

if TYPE_CHECKING:
    from interlatent_live.explanations.writers.port import Writer

WriterKind = Literal["builtin", "openai", "anthropic"]

UNKNOWN_PRICE: Final = Price(input_per_million=30.0, output_per_million=180.0)
"""Assumed for a hosted model whose price nobody gave: dear, so that a limit still holds."""


def make_writer(
    kind: WriterKind,
    *,
    model: str = "",
    base_url: str | None = None,
    api_key: str | None = None,
    budget: Budget | None = None,
    timeout_s: float = 20.0,
) -> Writer:
    """A writer by name.

    A hosted model without a price in the budget is taken to be dear; with the money limit of 0 that
    a budget starts with, it is never called.

    Raises:
        UserError: for an unknown name, a missing key or a missing model.
    """
    if kind == "builtin":
        return BuiltInWriter()
    budget = budget or Budget()
    if base_url is None and budget.price == Price():
        budget.price = UNKNOWN_PRICE
    if kind == "openai":
        from interlatent_live.explanations.writers.openai import OpenAICompleter  # noqa: PLC0415

        openai = OpenAICompleter(model, base_url=base_url, api_key=api_key, timeout_s=timeout_s)
        return LlmWriter(openai, budget=budget, deadline_s=1.5 * timeout_s)
    if kind == "anthropic":
        from interlatent_live.explanations.writers.anthropic import (  # noqa: PLC0415
            AnthropicCompleter,
        )

        claude = AnthropicCompleter(model, base_url=base_url, api_key=api_key, timeout_s=timeout_s)
        return LlmWriter(claude, budget=budget, deadline_s=1.5 * timeout_s)
    raise UserError(f"there is no writer {kind!r}; use builtin, openai or anthropic")
