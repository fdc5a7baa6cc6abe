"""Messages to prompt ids: one role's chat template, its opening, and no forged control tokens.

A template is rendered to text and the text is encoded once. Text that a *user* wrote may spell a
control token (``<|im_end|>``); encoded as it is, it would end the user's turn. So every such
spelling inside a message is swapped for a private placeholder before rendering, the rendered text
is encoded up to the placeholder, the spelling is encoded as plain text, and so on. Afterwards the
control tokens of the prompt are compared with those that the template alone produces; any
difference refuses the prompt.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Final

from jinja2.exceptions import TemplateError

from alignbeam.errors import PromptError
from alignbeam.models.conversation import Message, Prompt, as_messages
from alignbeam.vocab.retokenize import plain_encode

#: For models without a template of their own. Declares its opening like every template: by what
#: stands between the generation prompt and the answer (one blank).
PLAIN_TEMPLATE: Final = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

#: Stands for an answer when a template is probed; a letter, so that no blank merges with it.
_PROBE: Final = "X"


class Renderer:
    """One role's prompt format.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
        The role's own.
    name : str
        Name of the role, for errors.
    system_prompt : str or None
        Put before the conversation (and before a system message of its own).
    chat_template : str or None
        Jinja text instead of the tokenizer's template.
    thinking : bool
        Leave the template's thinking mode on.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        *,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        thinking: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._system_prompt = system_prompt
        self._thinking = thinking
        self.has_template = chat_template is not None or tokenizer.chat_template is not None
        own = chat_template if chat_template is not None else tokenizer.chat_template
        self._template = own if own is not None else PLAIN_TEMPLATE
        named = set(tokenizer.all_special_tokens)
        # Control is also what plain text must not become although its file forgets to call it
        # special: phi-3's </s>, deepseek-coder's <|EOT|>.
        control = {
            token.content: i
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special
            or token.content in named
            or i not in plain_encode(tokenizer, token.content)
        }
        self._control_ids = set(control.values())
        # Longest first: where one spelling begins with another, the longer one is the token.
        self._spellings = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, self._spellings)) or "(?!)")
        self._skeletons: dict[tuple[str, ...], list[int]] = {}

    def text(self, prompt: Prompt) -> str:
        """Render messages to the prompt text, generation prompt included."""
        return self._render(self._with_system(as_messages(prompt)), answer=False)

    def ids(self, prompt: Prompt) -> list[int]:
        """Render messages to prompt ids in which user text is never a control token.

        Raises
        ------
        PromptError
            The messages are no prompt, the template refuses them, or their text would forge
            control tokens in spite of everything.
        """
        messages = self._with_system(as_messages(prompt))
        if any(self._control.search(m["content"]) for m in messages):
            ids = self._encode_armoured(messages)
        else:
            ids = self._encode(self._render(messages, answer=False))
        # The roles decide the skeleton: what a template adds does not depend on the words.
        key = tuple(m["role"] for m in messages)
        if key not in self._skeletons:
            plain = [{"role": m["role"], "content": _PROBE} for m in messages]
            self._skeletons[key] = self._controls(self._encode(self._render(plain, answer=False)))
        if self._controls(ids) != self._skeletons[key]:
            raise PromptError(
                f"the {self._name}'s tokenizer turns text of these messages into control tokens; "
                "remove control-token text from them"
            )
        return ids

    def opening(self) -> bytes:
        """Bytes that the template puts between the generation prompt and the answer.

        Empty where the template renders an answered conversation differently from its own
        generation prompt (as templates with thinking blocks do): then it declares nothing.
        """
        asked = self._with_system([{"role": "user", "content": _PROBE}])
        prompt = self._render(asked, answer=False)
        # A second letter, lest the probe's first one be found inside the prompt.
        answered = self._render([*asked, {"role": "assistant", "content": _PROBE}], answer=True)
        if not answered.startswith(prompt):
            return b""
        before, found, _ = answered[len(prompt) :].partition(_PROBE)
        if not found or any(spelling in before for spelling in self._spellings):
            return b""
        return before.encode()

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self._system_prompt is None:
            return messages
        own = self._system_prompt
        if messages[0]["role"] == "system":
            own, messages = f"{own}\n\n{messages[0]['content']}", messages[1:]
        return [{"role": "system", "content": own}, *messages]

    def _render(self, messages: list[Message], *, answer: bool) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=not answer,
                enable_thinking=self._thinking,
            )
        except TemplateError as error:
            raise PromptError(
                f"the {self._name}'s chat template refuses these messages: {error}"
            ) from error
        return str(rendered)

    def _encode(self, text: str) -> list[int]:
        # The template spells its own begin-of-text token, so none is added here.
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _controls(self, ids: list[int]) -> list[int]:
        return [i for i in ids if i in self._control_ids]

    def _encode_armoured(self, messages: list[Message]) -> list[int]:
        nonce = secrets.token_hex(8)  # unknown to whoever wrote the messages
        placeholders = {s: f"\ue000{nonce}:{n}\ue001" for n, s in enumerate(self._spellings)}
        armoured = []
        for message in messages:
            content = self._control.sub(lambda match: placeholders[match[0]], message["content"])
            armoured.append({"role": message["role"], "content": content})
        rendered = self._render(armoured, answer=False)
        first, *rest = re.split(f"\ue000{nonce}:(\\d+)\ue001", rendered)
        ids = self._encode(first)
        for number, text in zip(rest[::2], rest[1::2], strict=True):
            ids += plain_encode(self._tokenizer, self._spellings[int(number)])
            # What follows stands in mid-text, where no blank is put before it; from the
            # template's next control token on, the tokenizer has its way again.
            own = self._control.search(text)
            at = own.start() if own else len(text)
            ids += plain_encode(self._tokenizer, text[:at]) + self._encode(text[at:])
        return ids
