"""Which token ids end a turn or a text."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from alignbeam.errors import ModelLoadError, PromptError
from alignbeam.vocab.chat_template import ChatTemplate, chosen_template
from alignbeam.vocab.tokenizer_file import added_tokens, backend_of, describe

# End-of-turn and end-of-text names of the families in use. Counted only where the tokenizer has
# the name as an added token of its own, so that no ordinary text is ever taken for an end.
WELL_KNOWN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|EOT|>",
    "<|eos|>",
    "<|return|>",
    "<|call|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end▁of▁sentence|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "[EOS]",
)
# Where <|return|> exists (gpt-oss), <|end|> only closes a channel: the answer is still to come.
_CHANNEL_END, _CHANNEL_RETURN = "<|end|>", "<|return|>"
_ANSWER = "answer"


def end_token_ids(
    tokenizer: Any, generation_config: Any = None, template: ChatTemplate | None = None
) -> tuple[int, ...]:
    """Return every id that ends an answer, the one to aim at first.

    The union of what the generation config, the tokenizer's eos, the chat template and
    well-known names among the added tokens say. Too many ends do no harm (a control token is
    never part of an answer's text); one that is missing lets a model talk past its turn.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    generation_config : GenerationConfig, optional
        Its ``eos_token_id`` may be None, an id, or a list of ids.
    template : ChatTemplate, optional
        The one in use; the tokenizer's own where None.

    Returns
    -------
    tuple of int
        Distinct ids. First the one that the chat template puts after an answer, else the
        tokenizer's eos, else the generation config's first; then the others by ascending id.
        Empty when nothing names an end.

    Source
    ------
    algorithm.md section 2, kind END.
    """
    by_name = {token.content: i for i, token in added_tokens(backend_of(tokenizer)).items()}
    aims = [_template_end(tokenizer, template, by_name), tokenizer.eos_token_id]
    configured = _as_ids(getattr(generation_config, "eos_token_id", None))
    known = {by_name[name] for name in WELL_KNOWN_ENDS if name in by_name}
    if _CHANNEL_RETURN in by_name and by_name.get(_CHANNEL_END) not in (*aims, *configured):
        known.discard(by_name.get(_CHANNEL_END, -1))
    named = [int(i) for i in (*aims, *configured) if i is not None]
    rest = sorted((known | set(named)) - set(named[:1]))
    return (*named[:1], *rest)


def _as_ids(value: int | Iterable[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (int(value),) if isinstance(value, int) else tuple(int(i) for i in value)


def _template_end(
    tokenizer: Any, template: ChatTemplate | None, by_name: dict[str, int]
) -> int | None:
    """Render one answered conversation and take the added token that follows the answer."""
    messages = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": _ANSWER},
    ]
    try:
        if template is None:
            own = chosen_template(tokenizer, None, "model")
            if own is None:
                return None
            template = ChatTemplate.of(tokenizer, own, "model")
        text = template.render(messages, answer=True)
    except (ModelLoadError, PromptError) as error:
        warnings.warn(
            f"tokenizer {describe(tokenizer)}: its chat template cannot render an answer "
            f"({error}); end tokens are taken from elsewhere",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    tail = text.rpartition(_ANSWER)[2].lstrip()
    # The longest name wins where one is the beginning of another.
    for name in sorted(by_name, key=len, reverse=True):
        if tail.startswith(name):
            return by_name[name]
    return None
