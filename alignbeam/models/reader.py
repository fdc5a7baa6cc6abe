"""What reads prompts as one model does, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from alignbeam.config import RoleConfig
from alignbeam.errors import ModelLoadError
from alignbeam.models.conversation import Prompt
from alignbeam.models.loading import load_tokenizer, load_window, template_text, tokenizer_source
from alignbeam.models.probe import NO_LIMIT
from alignbeam.models.render import Renderer
from alignbeam.vocab.retokenize import plain_encode


class Reader:
    """A role without its weights: how it reads a prompt, and how much of one.

    Parameters
    ----------
    name : str
        ``"target"``, ``"anchor"`` or ``"judge"``; stands in errors.
    tokenizer : PreTrainedTokenizerFast
    window : int or None
        Positions the model has; None where nothing tells.
    system_prompt, chat_template, thinking, fold_turns
        See ``RoleConfig``.

    Attributes
    ----------
    opening : bytes
        What the template puts between the generation prompt and the answer's first letter.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        window: int | None,
        *,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        thinking: bool = False,
        fold_turns: bool | None = None,
    ) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.window = window or NO_LIMIT
        self._renderer = Renderer(
            tokenizer,
            name,
            system_prompt=system_prompt,
            chat_template=chat_template,
            thinking=thinking,
            fold_turns=fold_turns,
        )
        self.opening = self._renderer.opening()

    @classmethod
    def without_weights(cls, name: str, config: RoleConfig) -> Reader:
        """Read what a role's configuration names, all but the weights.

        Raises
        ------
        ModelLoadError, TokenizerError
            See ``Role.from_config``.
        """
        if config.model is None:
            raise ModelLoadError(f"no model is named for the {name}; set {name}.model")
        source, revision = tokenizer_source(config, name)
        return Reader(
            name,
            load_tokenizer(source, name=name, revision=revision),
            load_window(name, config),
            system_prompt=config.system_prompt,
            chat_template=template_text(config.chat_template),
            thinking=config.thinking,
            fold_turns=config.fold_turns,
        )

    @property
    def has_template(self) -> bool:
        """Whether a chat template is declared (else the plain ``User: ... Assistant:`` is used)."""
        return self._renderer.has_template

    @property
    def chat_template(self) -> str:
        """Jinja text of the template in use; empty where none is declared."""
        template = self._renderer.own_template
        return "" if template is None else template.text

    @property
    def folded(self) -> tuple[str, ...]:
        """What the template does not take, and is folded. See ``Renderer``."""
        return self._renderer.folded

    @property
    def refused(self) -> tuple[str, ...]:
        """What the template does not take, so that requests with it fail. See ``Renderer``."""
        return self._renderer.refused

    def render(self, prompt: Prompt) -> list[int]:
        """Messages to prompt ids, generation prompt included. See ``Renderer.ids``."""
        return self._renderer.ids(prompt)

    def render_text(self, prompt: Prompt) -> str:
        """Messages to prompt text, for people to read. See ``Renderer.text``."""
        return self._renderer.text(prompt)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in mid-context: no control tokens, no leading blank added."""
        return plain_encode(self.tokenizer, text)

    def next_token_logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Refused: there are no weights."""
        raise ModelLoadError(f"the {self.name} was read without its weights")
