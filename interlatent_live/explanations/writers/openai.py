"""OpenAI's SDK as a completer: the hosted models, and every server that speaks their API.

vLLM, llama.cpp and Ollama are reached by their address. The SDK is imported when a writer is made,
not before; its own retries are off.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import UserError
from interlatent_live.explanations.writers.llm import Completion, CompletionError, Message
from interlatent_live.explanations.writers.port import Usage

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

KEY_VARIABLE: Final = "OPENAI_API_KEY"


class OpenAICompleter:
    """One model behind ``chat.completions``.

    Args:
        model: the model's name, as the server knows it.
        base_url: another server than OpenAI's own, such as ``http://127.0.0.1:8000/v1``.
        api_key: instead of the environment's; a server of one's own may need none.
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
            raise UserError("the openai writer needs a model; name one with --llm-model")
        key = api_key or os.environ.get(KEY_VARIABLE)
        if not key and base_url is None:
            raise UserError(
                f"the openai writer needs a key: set {KEY_VARIABLE}, give the address of a server "
                "of your own, or use the built-in writer, which needs neither"
            )
        import openai  # noqa: PLC0415 - 0.9 s, and only for those who chose it

        self._sdk = openai
        self._client: AsyncOpenAI = openai.AsyncOpenAI(
            api_key=key or "none", base_url=base_url, timeout=timeout_s, max_retries=0
        )
        self._model = model
        self._own_server = base_url is not None

    @property
    def name(self) -> str:
        """``"openai:MODEL"``."""
        return f"openai:{self._model}"

    async def complete(
        self,
        system: str,
        messages: list[Message],
        schema: dict[str, Any] | None,
        max_tokens: int,
    ) -> Completion:
        """One chat completion.

        Raises:
            CompletionError: for everything that a server or a network does.
        """
        turns = [{"role": "system", "content": system}]
        turns += [{"role": message.role, "content": message.text} for message in messages]
        request: dict[str, Any] = {"model": self._model, "messages": turns}
        # Servers of one's own know the older word, the hosted models only the newer one.
        request["max_tokens" if self._own_server else "max_completion_tokens"] = max_tokens
        if schema is not None:
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            }
        try:
            answer: ChatCompletion = await self._client.chat.completions.create(**request)
            return _read(answer)
        except self._sdk.APITimeoutError as error:
            raise CompletionError("too slow", f"{self.name} did not answer in time") from error
        except self._sdk.APIStatusError as error:
            raise status_error(self.name, error.status_code, error.response.headers) from error
        except self._sdk.OpenAIError as error:
            raise CompletionError("unreachable", f"{self.name} cannot be reached") from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise CompletionError("garbage", f"{self.name} answered outside its API") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


def _read(answer: ChatCompletion) -> Completion:
    choice = answer.choices[0]
    usage = None
    if answer.usage is not None:
        usage = Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens, 1)
    if choice.message.refusal:
        return Completion("the model refused", usage, complete=False)
    if choice.finish_reason in ("length", "content_filter"):
        return Completion(f"the answer was cut ({choice.finish_reason})", usage, complete=False)
    return Completion(choice.message.content or "", usage)


def status_error(name: str, status: int, headers: Any) -> CompletionError:
    """A refusal by HTTP status; only the status is repeated, not the server's words."""
    try:
        retry_after = max(float(headers.get("retry-after", 0)), 0.0)
    except ValueError:
        retry_after = 0.0
    if status == 429:
        return CompletionError("rate limit", f"{name} limits the rate (429)", retry_after)
    if status in (401, 403):
        return CompletionError("key", f"{name} refused the key ({status})")
    if 400 <= status < 500:
        return CompletionError("refused by the server", f"{name} refused the request ({status})")
    return CompletionError("server error", f"{name} failed ({status})", retry_after)
