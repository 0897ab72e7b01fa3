"""Anthropic's SDK as a completer; imported when a writer is made, its own retries off."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import UserError
from interlatent_live.explanations.writers.llm import Completion, CompletionError, Message
from interlatent_live.explanations.writers.openai import status_error
from interlatent_live.explanations.writers.port import Usage

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types import Message as Answer

KEY_VARIABLE: Final = "ANTHROPIC_API_KEY"


class AnthropicCompleter:
    """One model behind ``messages``.

    Args:
        model: the model's name.
        base_url: another server that speaks the same API.
        api_key: instead of the environment's.
        timeout_s: of one request.

    Raises:
        UserError: without a key for the hosted service, or without a model.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 20.0,
    ) -> None:
        if not model:
            raise UserError("the anthropic writer needs a model; name one with --llm-model")
        key = api_key or os.environ.get(KEY_VARIABLE)
        if not key and base_url is None:
            raise UserError(
                f"the anthropic writer needs a key: set {KEY_VARIABLE}, give the address of a "
                "server of your own, or use the built-in writer, which needs neither"
            )
        import anthropic  # noqa: PLC0415 - 1.4 s, and only for those who chose it

        self._sdk = anthropic
        self._client: AsyncAnthropic = anthropic.AsyncAnthropic(
            api_key=key or "none", base_url=base_url, timeout=timeout_s, max_retries=0
        )
        self._model = model

    @property
    def name(self) -> str:
        """``"anthropic:MODEL"``."""
        return f"anthropic:{self._model}"

    async def complete(
        self,
        system: str,
        messages: list[Message],
        schema: dict[str, Any] | None,
        max_tokens: int,
    ) -> Completion:
        """One message.

        Raises:
            CompletionError: for everything that a server or a network does.
        """
        request: dict[str, Any] = {
            "model": self._model,
            "max_tokens": max_tokens,
            "system": system,
            "messages": [{"role": message.role, "content": message.text} for message in messages],
        }
        if schema is not None:
            request["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        try:
            answer: Answer = await self._client.messages.create(**request)
            return _read(answer)
        except self._sdk.APITimeoutError as error:
            raise CompletionError("too slow", f"{self.name} did not answer in time") from error
        except self._sdk.APIStatusError as error:
            raise status_error(self.name, error.status_code, error.response.headers) from error
        except self._sdk.AnthropicError as error:
            raise CompletionError("unreachable", f"{self.name} cannot be reached") from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise CompletionError("garbage", f"{self.name} answered outside its API") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


def _read(answer: Answer) -> Completion:
    usage = Usage(answer.usage.input_tokens, answer.usage.output_tokens, 1)
    if answer.stop_reason == "refusal":
        return Completion("the model refused", usage, complete=False)
    if answer.stop_reason in ("max_tokens", "model_context_window_exceeded"):
        return Completion(f"the answer was cut ({answer.stop_reason})", usage, complete=False)
    text = "".join(block.text for block in answer.content if block.type == "text")
    return Completion(text, usage)
