"""A guard format bound to a model: its prompt as token ids, and as text for finding labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from alignbeam.errors import TokenizerError
from alignbeam.judge.fill import fill
from alignbeam.judge.formats import GuardFormat
from alignbeam.judge.protocol import JudgeRole


class GuardPrompt(Protocol):
    """What ``GuardJudge`` needs of a prompt."""

    #: What the template puts between the prompt and the answer.
    opening: str

    def ids(self, values: Mapping[str, str]) -> list[int]:
        """Prompt ids; no value becomes a control token."""

    def text(self, values: Mapping[str, str]) -> str:
        """Prompt text."""

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt text of our own, control tokens parsed."""


class ChatPrompt:
    """The format's prompt as a user message in the model's own chat template."""

    def __init__(self, role: JudgeRole, guard: GuardFormat) -> None:
        self._role = role
        self._template = guard.prompt
        self.opening = role.opening.decode()

    def ids(self, values: Mapping[str, str]) -> list[int]:
        """See ``GuardPrompt``."""
        return self._role.render(self._messages(values))

    def text(self, values: Mapping[str, str]) -> str:
        """See ``GuardPrompt``."""
        return self._role.render_text(self._messages(values))

    def encode(self, text: str) -> list[int]:
        """See ``GuardPrompt``."""
        ids: list[int] = self._role.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _messages(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"role": "user", "content": fill(self._template, values)}]


class RawPrompt:
    """The format's prompt as it is, without a chat template.

    Control tokens are cut out of the *template*, before anything is filled in; the text between
    them is filled and encoded as plain text. So whatever a value spells stays text.

    Raises
    ------
    TokenizerError
        The tokenizer lacks a control token of the format: it is not this guard's.
    """

    opening = ""

    def __init__(self, role: JudgeRole, guard: GuardFormat) -> None:
        self._role = role
        self._template = guard.prompt
        added: dict[str, int] = role.tokenizer.get_added_vocab()
        missing = [control for control in guard.controls if control not in added]
        if missing:
            raise TokenizerError(
                f"the {role.name}'s tokenizer has no {', '.join(missing)}, which the "
                f"{guard.name!r} format is written with; choose the judge kind that fits the model"
            )
        wanted = (*guard.controls, *guard.optional_controls)
        self._controls = {control: added[control] for control in wanted if control in added}
        self._head: list[int] = []
        if guard.bos:
            bos = role.tokenizer.bos_token_id
            if bos is None:
                raise TokenizerError(
                    f"the {role.name}'s tokenizer has no BOS token, with which a prompt of the "
                    f"{guard.name!r} format begins; choose the judge kind that fits the model"
                )
            self._head = [bos]

    def ids(self, values: Mapping[str, str]) -> list[int]:
        """See ``GuardPrompt``."""
        return self._encode(self._template, values)

    def text(self, values: Mapping[str, str]) -> str:
        """See ``GuardPrompt``; without the BOS token, which ``encode`` adds."""
        return fill(self._template, values)

    def encode(self, text: str) -> list[int]:
        """See ``GuardPrompt``."""
        return self._encode(text, {})

    def _encode(self, template: str, values: Mapping[str, str]) -> list[int]:
        ids = list(self._head)
        for part in self._cut(template):
            if part in self._controls:
                ids.append(self._controls[part])
            else:
                ids.extend(self._role.encode_plain(fill(part, values) if values else part))
        return ids

    def _cut(self, text: str) -> list[str]:
        if not self._controls:
            return [text]
        pattern = "|".join(map(re.escape, self._controls))
        return [part for part in re.split(f"({pattern})", text) if part]
