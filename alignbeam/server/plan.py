"""From a checked request to what is to be decoded, within the operator's limits."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from alignbeam.config import BeamConfig, ServerConfig
from alignbeam.config.beam import MAX_BEAMS
from alignbeam.errors import ConfigError, PromptError
from alignbeam.models.conversation import Message, as_messages
from alignbeam.server.job import Release
from alignbeam.server.openai_requests import AlignBeamFields, ChatRequest, CompletionRequest
from alignbeam.server.problems import Problem

Messages = list[Message]

#: Longest stop string: each is looked for after every token of every beam.
_STOP_CHARACTERS: Final = 512


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """What a request comes to: one prompt and its settings per choice.

    Attributes
    ----------
    distinct : int
        How many different prompts there are; each has as many choices, which differ in their seed.
    field : str
        Where the prompts were in the request.
    """

    prompts: tuple[Messages, ...]
    overrides: tuple[dict[str, Any], ...]
    release: Release
    explain: bool
    distinct: int
    field: str


class Planner:
    """Checks requests against the operator's limits and lays out what they come to.

    Parameters
    ----------
    beam : BeamConfig
        The operator's settings of every answer.
    config : ServerConfig
    width : int
        Tokens of the target's vocabulary: no request has more beams.

    Attributes
    ----------
    bounds : dict of str to pair of numbers
        Between what a request may set a field of ``BeamConfig``, both included.

    Raises
    ------
    ConfigError
        See ``check_ceilings``.
    """

    def __init__(self, beam: BeamConfig, config: ServerConfig, width: int = MAX_BEAMS) -> None:
        check_ceilings(beam, config)
        self._beam, self._config = beam, config
        self.bounds = {
            "alpha": _bounds(config.min_alpha, beam.alpha, 1.0),
            "mix_steps": _bounds(config.min_mix_steps, beam.mix_steps, config.max_mix_steps),
            "beams": _bounds(config.min_beams, beam.beams, min(width, config.max_beams)),
        }

    def chat(self, request: ChatRequest) -> RequestPlan:
        """Check a chat request against the operator's limits.

        Raises
        ------
        Problem
            400 or 404, naming the field.
        """
        if len(request.messages) > self._config.max_messages:
            raise _over("messages", self._config.max_messages)
        try:
            messages = as_messages(request.messages)
        except PromptError as error:
            place = f"messages.{error.place}" if error.place else "messages"
            raise Problem(400, error.code, str(error), place) from error
        for one, two in itertools.pairwise(messages):
            if one["role"] == two["role"] == "assistant":
                raise Problem(400, "invalid_prompt", "Two assistant messages in a row.", "messages")
        limit = request.max_completion_tokens or request.max_tokens
        return self._plan(request, [messages], limit, "messages")

    def completion(self, request: CompletionRequest) -> RequestPlan:
        """Check a completion request; each prompt becomes one user message."""
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return self._plan(request, messages, request.max_tokens, "prompt")

    def _plan(
        self,
        request: ChatRequest | CompletionRequest,
        prompts: Sequence[Messages],
        limit: int | None,
        field: str,
    ) -> RequestPlan:
        config = self._config
        if request.model != config.model_name:
            raise Problem(
                404, "model_not_found", f"The model here is called {config.model_name}.", "model"
            )
        choices = request.n or 1
        if choices * len(prompts) > config.max_choices:
            raise _over("n" if choices > 1 else field, config.max_choices)
        if len(request.stops) > config.max_stops:
            raise _over("stop", config.max_stops)
        if any(not stop for stop in request.stops):
            raise Problem(400, "invalid_value", "stop: empty strings end nothing", "stop")
        if any(len(stop) > _STOP_CHARACTERS for stop in request.stops):
            what = f"stop: at most {_STOP_CHARACTERS} characters each"
            raise Problem(400, "invalid_value", what, "stop")
        if limit is not None and limit > config.max_tokens:
            raise _over("max_tokens", config.max_tokens)
        extension = request.alignbeam or AlignBeamFields()
        settings = self._extension(extension)
        base = self._beam
        if limit is not None:
            settings["max_new_tokens"] = limit
        tokens = settings.get("max_new_tokens", min(base.max_new_tokens, config.max_tokens))
        settings["max_new_tokens"] = tokens
        mix_steps = settings.get("mix_steps", base.mix_steps)
        settings["mix_steps"] = min(mix_steps, tokens)  # short answers are mixed whole
        if request.temperature is not None:
            settings["temperature"] = float(request.temperature)
        if request.top_p is not None:
            settings["top_p"] = float(request.top_p)
        if request.stops:
            settings["stop"] = tuple(dict.fromkeys((*base.stop, *request.stops)))
            settings["stop_ends"] = base.stop_ends and config.stop_ends
        settings["wishes"] = 1  # the trace is where the shares come from
        seed = secrets.randbits(62) if request.seed is None else request.seed % 2**62
        each: list[dict[str, Any]] = [{**settings, "seed": seed + i} for i in range(choices)]
        return RequestPlan(
            tuple(list(m) for m in prompts for _ in each),
            tuple(o for _ in prompts for o in each),
            extension.policy or config.release,
            extension.explain,
            len(prompts),
            field,
        )

    def _extension(self, extension: AlignBeamFields) -> dict[str, Any]:
        """Return the settings of a request's own ``alignbeam`` object, as far as it is open."""
        settings: dict[str, Any] = {}
        for name in extension.model_fields_set:
            value = getattr(extension, name)
            if value is None or value is False:
                continue
            place = f"alignbeam.{name}"
            if name not in self._config.allow:
                raise Problem(400, "not_allowed", f"{place} is not open on this server.", place)
            if name in self.bounds:
                low, high = self.bounds[name]
                if not low <= value <= high:
                    raise Problem(
                        400, "invalid_value", f"{place} must be in {low:g}..{high:g}.", place
                    )
                settings[name] = value
        return settings


def check_ceilings(beam: BeamConfig, config: ServerConfig) -> None:
    """Check that the operator's own settings lie below the operator's ceilings.

    Raises
    ------
    ConfigError
        More beams than ``max_beams``.
    """
    if beam.beams > config.max_beams:
        raise ConfigError(
            f"beam.beams ({beam.beams}) is above server.max_beams ({config.max_beams}); lower the "
            "one or raise the other"
        )


def _bounds(floor: float | None, own: float, ceiling: float) -> tuple[float, float]:
    """Return what a request may set: the operator's ``own`` value lies within, or below."""
    low = own if floor is None else floor
    return low, max(low, ceiling)


def _over(field: str, limit: int) -> Problem:
    return Problem(400, "too_many", f"{field}: this server takes at most {limit}.", field)
