"""For people who live in transformers: ``model.generate(..., custom_generate=...)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from alignbeam.controller import AlignBeam
from alignbeam.errors import ConfigError
from alignbeam.models.conversation import Prompt


def custom_generate(beam: AlignBeam) -> Callable[..., torch.Tensor]:
    """Return a decoding loop for ``generate`` of the target's own model.

    ``messages`` says the conversation again, because the anchor must render it with its own
    template: ids of the target cannot be read back without guessing. Length and sampling come
    from ``generate``'s own arguments, fields of ``BeamConfig`` from ``alignbeam``.

    Examples
    --------
    >>> ids = torch.tensor([beam.target.render(messages)])  # doctest: +SKIP
    >>> out = beam.target.model.generate(
    ...     ids, custom_generate=custom_generate(beam), messages=messages, max_new_tokens=64
    ... )  # doctest: +SKIP

    Raises
    ------
    ConfigError
        Another model, no ``messages``, ids that are not their rendering, or a request for several
        sequences (one judged answer comes back).
    AlignBeamError
        Everything that ``AlignBeam.generate`` raises.
    """

    # `generate` hands over what the signature names beyond its own loops': `messages` and
    # `alignbeam`. The mask must not be named, or it would come twice; it is None without padding.
    def decode(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        messages: Prompt | Sequence[Prompt] | None = None,
        alignbeam: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        target = beam.target
        if model is not target.model:
            raise ConfigError(
                "custom_generate belongs to another model; call target.model.generate"
            )
        if max(generation_config.num_beams, generation_config.num_return_sequences) > 1:
            raise ConfigError(
                "one judged answer comes back; set BeamConfig.beams for more candidates, and leave "
                "num_beams and num_return_sequences at 1"
            )
        prompts = _conversations(messages, len(input_ids))
        attention_mask = model_kwargs.get("attention_mask")
        for row, prompt in enumerate(prompts):
            kept = (
                input_ids[row]
                if attention_mask is None
                else input_ids[row][attention_mask[row] == 1]
            )
            if kept.tolist() != target.render(prompt):
                raise ConfigError(
                    f"row {row}: input_ids are not the target's rendering of messages; "
                    "make them with target.render(messages)"
                )
        overrides: dict[str, Any] = {
            "max_new_tokens": generation_config.max_length - input_ids.shape[1],
            "temperature": generation_config.temperature if generation_config.do_sample else 0.0,
            "top_p": generation_config.top_p or 1.0,
            "top_k": generation_config.top_k or 0,
            **(alignbeam or {}),
        }
        answers = []
        for result in beam.generate_batch(prompts, overrides):
            if result.chosen is None:
                answers.append([*target.encode_plain(result.text), target.end_ids[0]])
            else:
                answers.append(list(result.candidates[result.chosen].token_ids))
        width = max(len(answer) for answer in answers)
        padded = [answer + [target.pad_id] * (width - len(answer)) for answer in answers]
        return torch.cat([input_ids, torch.tensor(padded, device=input_ids.device)], dim=1)

    return decode


def _conversations(messages: Prompt | Sequence[Prompt] | None, rows: int) -> list[Prompt]:
    if messages is None:
        raise ConfigError("pass messages=..., the conversation that input_ids render")
    one = isinstance(messages, str) or (len(messages) > 0 and isinstance(messages[0], Mapping))
    conversations = cast(list[Prompt], [messages] if one else list(messages))
    if len(conversations) != rows:
        raise ConfigError(f"{len(conversations)} conversations for {rows} rows of input_ids")
    return conversations
