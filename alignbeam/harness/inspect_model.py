"""AlignBeam as a model of inspect_ai: its messages in, judged answers out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelInfo,
    ModelOutput,
    ModelUsage,
    StopDetails,
    set_model_info,
)

from alignbeam.errors import ConfigError, PromptError
from alignbeam.harness.batching import Batcher
from alignbeam.harness.loading import load
from alignbeam.models.conversation import Message
from alignbeam.result import Result

#: Settings of a generation that are ours too, by inspect_ai's name.
_SETTINGS: Final = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop_seqs": "stop",
}
#: Settings that would change an answer and that a steered, judged one cannot have.
_REFUSED: Final = (
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "response_schema",
    "modalities",
    "extra_body",
)
#: Names whose window inspect_ai knows.
_KNOWN: Final[set[str]] = set()


class AlignBeamAPI(ModelAPI):  # type: ignore[misc]
    """Provider ``alignbeam``.

    Parameters
    ----------
    model_name : str
        What follows ``alignbeam/``: ``embedded``, a folder or a hub id of the target.
    base_url, api_key
        Taken because inspect_ai hands them over; there is no service, so neither is used.
    config : GenerateConfig
        Of the model; inspect_ai merges it into every request's.
    **model_args
        ``-M NAME=VALUE``: see ``alignbeam.harness.loading.load``.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        loaded = load(model_name, model_args)
        self.beam = loaded.beam
        self.batch_size = loaded.batch_size
        self._batcher = Batcher(loaded.beam, loaded.batch_size)
        _tell_window(f"alignbeam/{model_name}", self.beam.target.window)

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one conversation; concurrent ones are answered together.

        Raises
        ------
        PromptError, ConfigError
            Messages or settings that cannot be had, by name; nothing is left out in silence.
        JudgeUnavailable, UnsafeAnswer, NonFiniteLogits
            See ``AlignBeam.generate``; the sample then fails.
        """
        if tools:
            names = ", ".join(tool.name for tool in tools)
            raise ConfigError(f"alignbeam calls no tools, got {names}; use a solver without tools")
        begin = time.perf_counter()
        overrides = overrides_of(config)
        result = await self._batcher.answer(messages_of(input), overrides)
        limit = overrides.get("max_new_tokens", self.beam.config.max_new_tokens)
        return self._output(result, limit, time.perf_counter() - begin)

    def max_tokens(self) -> int | None:
        """Longest answer where the task does not say."""
        return self.beam.config.max_new_tokens

    def max_connections(self) -> int:
        """Keep as many requests under way as are answered together."""
        return self.batch_size

    def collapse_user_messages(self) -> bool:
        """Chat templates want users and assistants to alternate."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """Chat templates want users and assistants to alternate."""
        return True

    def collapse_system_messages(self) -> bool:
        """One system message, and it comes first."""
        return True

    def _output(self, result: Result, limit: int, seconds: float) -> ModelOutput:
        refused = result.finish_reason == "content_filter"
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(
                content=result.text, model=self.model_name, source="generate"
            ),
            stop_reason=stop_reason(result, limit),
            stop_details=StopDetails(type="refusal", explanation=result.public_reason)
            if refused
            else None,
        )
        return ModelOutput(
            model=self.model_name,
            choices=[choice],
            usage=ModelUsage(
                input_tokens=result.prompt_tokens,
                output_tokens=result.completion_tokens,
                total_tokens=result.prompt_tokens + result.completion_tokens,
            ),
            time=seconds,
            metadata={"alignbeam": result.public()},
        )


def _tell_window(name: str, window: int) -> None:
    """Register a model's window: looking for it, inspect_ai would load the model once more."""
    if name not in _KNOWN:  # once, so that what a caller registers afterwards stays
        _KNOWN.add(name)
        set_model_info(name, ModelInfo(organization="alignbeam", context_length=window))


def messages_of(conversation: Sequence[ChatMessage]) -> list[Message]:
    """Return inspect_ai's messages as ours.

    Raises
    ------
    PromptError
        A message of a tool, a tool call, or content that is not text.
    """
    found: list[Message] = []
    for i, message in enumerate(conversation):
        if message.role == "tool" or getattr(message, "tool_calls", None):
            raise PromptError(f"message {i} belongs to a tool call; alignbeam calls no tools")
        if not isinstance(message.content, str):
            odd = [part.type for part in message.content if part.type not in ("text", "reasoning")]
            if odd:
                raise PromptError(f"message {i} holds {', '.join(odd)}; alignbeam reads text only")
        # ``text`` is the written part: an assistant's own reasoning is not shown back to it.
        found.append({"role": message.role, "content": message.text})
    return found


def overrides_of(config: GenerateConfig) -> dict[str, Any]:
    """Return a generation's settings as fields of ``BeamConfig``.

    Raises
    ------
    ConfigError
        One that a steered, judged answer cannot have.
    """
    for name in _REFUSED:
        if getattr(config, name) not in (None, False):
            raise ConfigError(f"alignbeam does not take {name}; leave it out")
    if config.num_choices not in (None, 1):
        raise ConfigError(
            f"alignbeam gives one answer, the one its judge chose, got num_choices = "
            f"{config.num_choices}; use epochs for several"
        )
    given = {ours: getattr(config, theirs) for theirs, ours in _SETTINGS.items()}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }


def stop_reason(result: Result, limit: int) -> str:
    """Return why the answer ends, in inspect_ai's words.

    An answer that stops short of ``limit`` tokens without an end met the model's window.
    """
    if result.finish_reason == "length":
        return "max_tokens" if result.completion_tokens >= limit else "model_length"
    return "content_filter" if result.finish_reason == "content_filter" else "stop"
