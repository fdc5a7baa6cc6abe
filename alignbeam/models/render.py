"""Messages to prompt ids: one role's chat template, its opening, and no forged control tokens.

A template is rendered to text and the text is encoded once. Text that a *user* wrote may spell a
control token (``<|im_end|>``); encoded as it is, it would end the user's turn. So every such
spelling inside a message is swapped for a private placeholder before rendering, the rendered text
is encoded up to the placeholder, the spelling is encoded as plain text, and so on. Afterwards the
control tokens of the prompt are compared with those that the template alone produces; any
difference refuses the prompt.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable
from typing import Any, Final

from alignbeam.errors import ModelLoadError, PromptError, TokenizerError
from alignbeam.models.conversation import Message, Prompt, as_messages
from alignbeam.vocab.chat_template import DROPPED, KEPT, ChatTemplate, chosen_template, holds
from alignbeam.vocab.retokenize import plain_encode, plain_encode_batch
from alignbeam.vocab.tokenizer_file import backend_of

#: For models without a template of their own. Declares its opening like every template: by what
#: stands between the generation prompt and the answer (one blank).
PLAIN_TEMPLATE: Final = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

SYSTEM: Final = "a system message"
NEIGHBOURS: Final = "two turns of one role in a row"
GREETING: Final = "an assistant's turn before the user's"
#: What not every template takes, and the conversations of its trial that show it.
_UNUSUAL: Final = {NEIGHBOURS: ("uu", "uaau"), GREETING: ("au",), SYSTEM: ("su", "suauauauau")}

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
        Jinja text instead of the tokenizer's template, or the name of one of its templates.
    thinking : bool
        Leave the template's thinking mode on.
    fold_turns : bool or None
        Where the template does not take a system message, or turns in another order than user,
        assistant, user: put the text into a turn that it takes. None: for all but the target.

    Attributes
    ----------
    template : ChatTemplate
        The one in use.
    has_template : bool
        Whether one is declared; else it is ``PLAIN_TEMPLATE``.
    folded, refused : tuple of str
        What the template does not take, and is folded, or refused in requests.

    Raises
    ------
    ModelLoadError
        The template cannot be used, or leaves out text of messages and is not to be helped.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        *,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        thinking: bool = False,
        fold_turns: bool | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._system_prompt = system_prompt
        own = chosen_template(tokenizer, chat_template, name)
        self.has_template = own is not None
        text = PLAIN_TEMPLATE if own is None else own
        self.template = ChatTemplate.of(
            tokenizer, text, name, thinking=thinking, lone=name == "judge"
        )
        unfit = {what: self.template.outcome(*trials) for what, trials in _UNUSUAL.items()}
        found = tuple(what for what, outcome in unfit.items() if outcome != KEPT)
        fold = name != "target" if fold_turns is None else fold_turns
        self.folded: tuple[str, ...] = found if fold else ()
        self.refused: tuple[str, ...] = () if fold else found
        lost = [what for what in self.refused if unfit[what] == DROPPED]
        if lost:
            raise ModelLoadError(
                f"the {name}'s chat template leaves out the text of {lost[0]}; set "
                f"{name}.fold_turns = true to put it into a turn that is kept, or set "
                f"{name}.chat_template"
            )
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
        self._plain = dict(
            zip(self._spellings, plain_encode_batch(tokenizer, self._spellings), strict=True)
        )
        self._control = re.compile("|".join(map(re.escape, self._spellings)) or "(?!)")
        self._skeletons: dict[tuple[str, ...], list[int]] = {}
        # The backend is asked itself, which several threads may do at once: the wrapper sets its
        # truncation and padding on the way. Both stay off from here on.
        tokenizer.encode("", add_special_tokens=False)

    @property
    def own_template(self) -> ChatTemplate | None:
        """The template, where one is declared."""
        return self.template if self.has_template else None

    def text(self, prompt: Prompt) -> str:
        """Render messages to the prompt text, generation prompt included."""
        return self._render(self._fitted(prompt))

    def least_tokens(self, prompt: Prompt, longest: int, enough: int) -> int:
        """Return how many tokens a prompt has at least, without encoding it.

        A control spelling is what its plain text is, other text a token per ``longest`` bytes.
        Beyond ``enough`` the counting stops: spelling control tokens is cheap for whoever sends a
        megabyte of them, and encoding each by itself is not.
        """
        tokens = rest = 0
        for message in as_messages(prompt):
            rest += len(message["content"].encode())
            for match in self._control.finditer(message["content"]):
                tokens += len(self._plain[match[0]])
                rest -= len(match[0].encode())
                if tokens > enough:
                    return tokens
        return tokens + rest // longest

    def ids(self, prompt: Prompt) -> list[int]:
        """Render messages to prompt ids in which user text is never a control token.

        Threads may ask at once.

        Raises
        ------
        PromptError
            The messages are no prompt, the template refuses them, or their text would forge
            control tokens in spite of everything.
        """
        messages = self._fitted(prompt)
        if any(self._control.search(m["content"]) for m in messages):
            ids = self._encode_armoured(messages)
        else:
            ids = self._encode(self._render(messages))
        # The roles decide the skeleton: what a template adds does not depend on the words.
        key = tuple(m["role"] for m in messages)
        if key not in self._skeletons:
            plain = [{"role": m["role"], "content": _PROBE} for m in messages]
            self._skeletons[key] = self._controls(self._encode(self._render(plain)))
        if self._controls(ids) != self._skeletons[key]:
            raise PromptError(
                f"the {self._name}'s tokenizer turns text of these messages into control tokens; "
                "remove control-token text from them"
            )
        return ids

    def check_fits(self, width: int) -> None:
        """Refuse a template that writes tokens which a model of ``width`` tokens does not have.

        Raises
        ------
        TokenizerError
            Naming them.
        """
        asked = {"role": "user", "content": _PROBE}
        answered = [asked, {"role": "assistant", "content": _PROBE}, asked]
        for turns in ([asked], answered, [{"role": "system", "content": _PROBE}, asked]):
            try:
                ids = self.ids(turns)
            except PromptError:  # these turns are not for this template
                continue
            if beyond := sorted({i for i in ids if i >= width}):
                tokens = ", ".join(map(str, self._tokenizer.convert_ids_to_tokens(beyond)))
                raise TokenizerError(
                    f"the {self._name}'s chat template writes {tokens}, and its head of {width} "
                    "columns has none; this tokenizer belongs to another model, or the "
                    "embeddings were not resized with it"
                )

    def opening(self) -> bytes:
        """Bytes that the template puts between the generation prompt and the answer.

        Empty where the template renders an answered conversation differently from its own
        generation prompt (as templates with thinking blocks do): then it declares nothing.
        """
        asked = self._fitted(_PROBE)
        prompt = self._render(asked)
        # A second letter, lest the probe's first one be found inside the prompt.
        answer = {"role": "assistant", "content": _PROBE}
        answered = self.template.render([*asked, answer], answer=True)
        if not answered.startswith(prompt):
            return b""
        before, found, _ = answered[len(prompt) :].partition(_PROBE)
        if not found or any(spelling in before for spelling in self._spellings):
            return b""
        return (self._dummy_blank(prompt, before) + before).encode()

    def _dummy_blank(self, prompt: str, before: str) -> str:
        """Return the blank that the tokenizer puts before an answer, where no template does.

        A SentencePiece tokenizer may put its dummy blank after every control token, not only
        before the first word of a text: Phi-3 learnt to answer ``<|assistant|>`` with ``▁Sorry``.
        """
        ids, whole = self._encode(prompt), self._encode(prompt + before + _PROBE)
        if whole[: len(ids)] != ids:
            return ""
        said = whole[len(ids) :]
        bare, blank = plain_encode_batch(self._tokenizer, [before + _PROBE, " " + before + _PROBE])
        return " " if said == blank != bare else ""

    def _fitted(self, prompt: Prompt) -> list[Message]:
        """Messages as the template takes them, the role's own system prompt in front."""
        messages = as_messages(prompt)
        if self._system_prompt is not None:
            own = self._system_prompt
            if messages[0]["role"] == "system":
                own, messages = f"{own}\n\n{messages[0]['content']}", messages[1:]
            messages = [{"role": "system", "content": own}, *messages]
        for what in self.folded:
            messages = _FOLDS[what](messages)
        return messages

    def _render(self, messages: list[Message]) -> str:
        try:
            rendered = self.template.render(messages)
        except PromptError as error:
            if not self.refused:
                raise
            raise PromptError(
                f"{error} (it does not take {', or '.join(self.refused)}; "
                f"{self._name}.fold_turns = true lets it)"
            ) from error
        # Words that a user can have left out would be words that the others are asked without.
        if not holds(rendered, [m for m in messages if m["role"] == "user"]):
            raise PromptError(
                f"the {self._name}'s chat template leaves out or changes text of these messages"
            )
        return rendered

    def _encode(self, text: str) -> list[int]:
        # The template spells its own begin-of-text token, so none is added here.
        (encoding,) = backend_of(self._tokenizer).encode_batch_fast(
            [text], add_special_tokens=False
        )
        ids: list[int] = encoding.ids
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
        rendered = self._render(armoured)
        first, *rest = re.split(f"\ue000{nonce}:(\\d+)\ue001", rendered)
        ids = self._encode(first)
        # What follows a spelling stands in mid-text, where no blank is put before it; from the
        # template's next control token on, the tokenizer has its way again.
        found = [(text, self._control.search(text)) for text in rest[1::2]]
        ends = [own.start() if own else len(text) for text, own in found]
        middles = plain_encode_batch(
            self._tokenizer, [text[:end] for (text, _), end in zip(found, ends, strict=True)]
        )
        for number, (text, own), end, middle in zip(rest[::2], found, ends, middles, strict=True):
            ids += self._plain[self._spellings[int(number)]] + middle
            if own:
                ids += self._encode(text[end:])
        return ids


def _with_system_in_user(messages: list[Message]) -> list[Message]:
    system, *rest = messages
    return messages if system["role"] != "system" else _before_user(system["content"], rest)


def _with_greeting_in_user(messages: list[Message]) -> list[Message]:
    at = 1 if messages[0]["role"] == "system" else 0
    greetings = list(itertools.takewhile(lambda m: m["role"] == "assistant", messages[at:]))
    rest = messages[at + len(greetings) :]
    for greeting in reversed(greetings):
        rest = _before_user(f"Assistant message: {greeting['content']}", rest)
    return [*messages[:at], *rest]


def _before_user(text: str, messages: list[Message]) -> list[Message]:
    at = next(n for n, message in enumerate(messages) if message["role"] == "user")
    joined = {"role": "user", "content": f"{text}\n\n{messages[at]['content']}"}
    return [*messages[:at], joined, *messages[at + 1 :]]


def _with_neighbours_joined(messages: list[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            text = f"{joined[-1]['content']}\n\n{message['content']}"
            joined[-1] = {"role": message["role"], "content": text}
        else:
            joined.append(message)
    return joined


_FOLDS: Final[dict[str, Callable[[list[Message]], list[Message]]]] = {
    SYSTEM: _with_system_in_user,
    NEIGHBOURS: _with_neighbours_joined,
    GREETING: _with_greeting_in_user,
}
