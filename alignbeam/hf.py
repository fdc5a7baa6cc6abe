"""For people who live in transformers: ``model.generate(..., custom_generate=...)``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

import torch

from alignbeam.controller import AlignBeam
from alignbeam.engines.roles import local
from alignbeam.errors import ConfigError
from alignbeam.models.conversation import Prompt

#: Fields of a ``GenerationConfig`` that are read here, or that change no text of one sequence.
_HEEDED: Final = re.compile(
    r"max_length|max_new_tokens|do_sample|temperature|top_k|top_p|stop_strings|eos_token_id"
    r"|pad_token_id|bos_token_id|decoder_start_token_id|transformers_version|output_\w+"
    r"|early_stopping|length_penalty|num_beam_groups|diversity_penalty"  # of several beams
    # Of speed and memory.
    r"|\w*cache\w*|low_memory|prefill_chunk_size|\w*compile\w*|continuous_batching_config"
    r"|\w*assistant\w*|target_lookbehind|prompt_lookup_num_tokens|max_matching_ngram_size"
    r"|speculation_type|use_mtp"
)
#: Fields that greedy decoding does not read.
_SAMPLED: Final = ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
#: Values of the other fields, beside None and False, that change nothing. A field that is not
#: known here is refused where it is set.
_NEUTRAL: Final = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "typical_p": 1.0,
    "guidance_scale": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
#: What ``generate`` makes of the fields that are read, and the attribute that holds the value.
_WARPERS: Final = {
    "TemperatureLogitsWarper": "temperature",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
}


def custom_generate(beam: AlignBeam) -> Callable[..., torch.Tensor]:
    """Return a decoding loop for ``generate`` of the target's own model.

    ``messages`` says the conversation again, because the anchor must render it with its own
    template: ids of the target cannot be read back without guessing. Length, sampling and
    ``stop_strings`` (with ``tokenizer`` or without) come from ``generate``'s own arguments, fields
    of ``BeamConfig`` from ``alignbeam``. What else would change the text of a plain ``generate``,
    be it an argument or a field of the model's ``generation_config``, is refused by name.

    Examples
    --------
    >>> ids = torch.tensor([beam.target.render(messages)])  # doctest: +SKIP
    >>> out = beam.target.model.generate(
    ...     ids, custom_generate=custom_generate(beam), messages=messages, max_new_tokens=64
    ... )  # doctest: +SKIP

    Raises
    ------
    ConfigError
        Another model, no ``messages``, ids that are not their rendering, or an argument that
        cannot be honoured, such as several sequences (one judged answer comes back).
    AlignBeamError
        Everything that ``AlignBeam.generate`` raises.
    """

    # `generate` hands over what the signature names beyond its own loops': `messages`, `alignbeam`
    # and `stop_strings`, which its config would take only with the tokenizer that it drops before
    # it calls us. The mask must not be named, or it would come twice; it is None without padding.
    def decode(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        messages: Prompt | Sequence[Prompt] | None = None,
        alignbeam: Mapping[str, Any] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        target = local(beam.target, "custom_generate")
        if model is not target.model:
            raise ConfigError(
                "custom_generate belongs to another model; call beam.target.model.generate"
            )
        if _caller_streams() or model_kwargs.get("streamer") is not None:
            raise _refused("streamer", "an answer is judged whole; leave it out")
        _check_fields(generation_config)
        _check_processors(logits_processor or (), generation_config)
        length, stops = _stopping(stopping_criteria or (), beam)
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
            "max_new_tokens": min(length, generation_config.max_length) - input_ids.shape[1],
            "temperature": generation_config.temperature if generation_config.do_sample else 0.0,
            "top_p": generation_config.top_p or 1.0,
            "top_k": generation_config.top_k or 0,
            "stop": (
                *stops,
                *([stop_strings] if isinstance(stop_strings, str) else stop_strings or ()),
            ),
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


def _refused(name: str, why: str) -> ConfigError:
    return ConfigError(f"custom_generate does not take {name}: {why}")


def _caller_streams() -> bool:
    """Whether ``generate`` was given a streamer: it keeps that from a callable's arguments."""
    frame = inspect.currentframe()
    for _ in range(2):  # decode, and generate itself
        frame = frame.f_back if frame is not None else None
    return frame is not None and frame.f_locals.get("streamer") is not None


def _check_fields(config: Any) -> None:
    # Backwards, as generate makes min_length of min_new_tokens.
    for name, value in sorted(vars(config).items(), reverse=True):
        if name.startswith("_") or _HEEDED.fullmatch(name) or value is None or value is False:
            continue
        if name in _SAMPLED and not config.do_sample:
            continue
        neutral = _NEUTRAL.get(name)
        if value != neutral:
            why = f"one judged answer comes back as ids; leave it out, or pass {name}={neutral}"
            raise _refused(name, f"{why} if the model's own generation_config sets it")


def _check_processors(processors: Iterable[Any], config: Any) -> None:
    for processor in processors:
        kind = type(processor).__name__
        field = _WARPERS.get(kind)
        if field is None or getattr(processor, field) != getattr(config, field):
            why = f"the anchor's and the target's mix is not processed; leave {kind} out"
            raise _refused("logits_processor or prefix_allowed_tokens_fn", why)


def _stopping(criteria: Iterable[Any], beam: AlignBeam) -> tuple[int, list[str]]:
    """Return the longest sequence, prompt included, and the strings that end an answer."""
    length, stops = 2**31, list[str]()
    own = local(beam.target, "custom_generate").model.generation_config.eos_token_id
    known = [set(beam.target.end_ids), {own} if isinstance(own, int) else set(own or ())]
    for criterion in criteria:
        kind = type(criterion).__name__
        if kind == "MaxLengthCriteria":
            length = min(length, criterion.max_length)
        elif kind == "StopStringCriteria":
            stops += criterion.stop_strings
        elif kind != "EosTokenCriteria":
            raise _refused("stopping_criteria", f"leave {kind} out; stop_strings are taken")
        elif set(criterion.eos_token_id.flatten().tolist()) not in known:
            raise _refused("eos_token_id", f"an answer ends with {sorted(beam.target.end_ids)}")
    return length, stops


def _conversations(messages: Prompt | Sequence[Prompt] | None, rows: int) -> list[Prompt]:
    if messages is None:
        raise ConfigError("pass messages=..., the conversation that input_ids render")
    one = isinstance(messages, str) or (len(messages) > 0 and isinstance(messages[0], Mapping))
    conversations = cast(list[Prompt], [messages] if one else list(messages))
    if len(conversations) != rows:
        raise ConfigError(f"{len(conversations)} conversations for {rows} rows of input_ids")
    return conversations
