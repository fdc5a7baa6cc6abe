"""A role without its model: prompt format, tokenizer, exact bytes, window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from alignbeam.errors import PromptError, TokenizerError
from alignbeam.models.conversation import Prompt
from alignbeam.models.reader import Reader
from alignbeam.vocab.end_tokens import end_token_ids
from alignbeam.vocab.vocabulary import Vocabulary


class BareRole(Reader):
    """What target, anchor and judge are, wherever their weights live.

    Parameters
    ----------
    name : str
        ``"target"``, ``"anchor"`` or ``"judge"``; stands in errors.
    tokenizer : PreTrainedTokenizerFast
        With a declared decoder.
    width : int
        Logit columns of the head, padding included.
    window : int or None
        Positions the model has; None where nothing tells.
    generation_config : GenerationConfig or None
        Its end tokens count.
    system_prompt, chat_template, thinking, fold_turns
        See ``RoleConfig``.

    Attributes
    ----------
    vocabulary : Vocabulary
        What it reads and writes with; the role has its ``tokenizer``, ``width``, ``end_ids``,
        ``opening`` and ``bytes_of``.

    Raises
    ------
    TokenizerError
        The tokenizer does not fit the head, names no end token, or cannot be read exactly.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        *,
        width: int,
        window: int | None,
        generation_config: Any = None,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        thinking: bool = False,
        fold_turns: bool | None = None,
    ) -> None:
        super().__init__(
            name,
            tokenizer,
            window,
            system_prompt=system_prompt,
            chat_template=chat_template,
            thinking=thinking,
            fold_turns=fold_turns,
        )
        self.vocabulary = vocabulary = Vocabulary.of(
            tokenizer,
            width,
            end_token_ids(tokenizer, generation_config, self._renderer.own_template),
            self.opening,
            name,
        )
        self._renderer.check_fits(vocabulary.width)
        if not vocabulary.end_ids:
            raise TokenizerError(
                f"the {name} names no end token, so its answers would never end; "
                "set eos_token_id in its generation_config.json"
            )
        # What cannot be read exactly is refused now, in no answer.
        self._longest = max(len(data) for data in vocabulary.token_bytes if data is not None)
        self.width, self.end_ids = vocabulary.width, vocabulary.end_ids
        self.bytes_of = vocabulary.bytes_of

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return torch.device("cpu")

    def shown(self, token_ids: Sequence[int]) -> str:
        """Return tokens for people: their text, or the names of control tokens."""
        data = b"".join(self.bytes_of(i) for i in token_ids)
        if data:
            return data.decode("utf-8", errors="replace")
        names = self.tokenizer.convert_ids_to_tokens(list(token_ids))
        pairs = zip(token_ids, names, strict=True)
        return "".join(f"<{i}>" if name is None else str(name) for i, name in pairs)

    def check_text(self, prompt: Prompt) -> None:
        """Refuse, before anything is encoded, what cannot fit the window however it is encoded.

        Raises
        ------
        PromptError
            With both numbers.
        """
        least = self._renderer.least_tokens(prompt, self._longest, self.window)
        if least > self.window:
            raise PromptError(
                f"the prompt has {least} tokens or more for the {self.name}, whose window holds "
                f"{self.window}; shorten the conversation",
                "prompt_too_long",
            )

    def check_room(self, prompt_tokens: int, needed: int) -> None:
        """Refuse a prompt that leaves less than ``needed`` tokens of the window.

        Raises
        ------
        PromptError
            With both numbers.
        """
        if prompt_tokens + needed > self.window:
            raise PromptError(
                f"the prompt has {prompt_tokens} tokens for the {self.name}, whose window of "
                f"{self.window} leaves no room for {needed} more; shorten the conversation",
                "prompt_too_long",
            )
