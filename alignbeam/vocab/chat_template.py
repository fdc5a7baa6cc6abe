"""A chat template: which of a tokenizer's, tried out where it can do no harm, and rendering it.

A template is a program that came with the weights. Before it is used it renders a few
conversations in a process of its own, under limits of time, memory and length: one that does not
end is refused, and what it makes of them tells how it takes contents, system messages and turns.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final

from jinja2 import Template, TemplateError

from alignbeam.errors import ModelLoadError, PromptError
from alignbeam.vocab.template_environment import environment

Messages = Sequence[Mapping[str, str]]

#: What a template in sound health raises, or one that a conversation does not suit.
_RAISED: Final = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip

#: Limits of the process that tries a template; one that is no trap needs a hundredth of each.
CPU_SECONDS: Final = 3
WALL_SECONDS: Final = 60
MEMORY_BYTES: Final = 1 << 30
MAX_CHARACTERS: Final = 1 << 20

#: A message's text in a trial: long, for a template may keep no more than a beginning or an end.
_FILLING: Final = " words" * 300

#: What became of a trial's texts; anything else is why the template refused them.
KEPT: Final = "kept"
DROPPED: Final = "dropped"


def _probe(roles: str) -> list[dict[str, str]]:
    """One message a letter: s(ystem), u(ser), a(ssistant)."""
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [
        {"role": names[r], "content": f"Probe{chr(65 + n)} begins,{_FILLING}, Probe{chr(65 + n)}."}
        for n, r in enumerate(roles)
    ]


#: Who speaks in the conversations of a trial. Long ones: some templates forget what is far back.
_TRIALS: Final = ("u", "su", "uauauauau", "suauauauau", "uu", "uaau", "au")


def named_templates(tokenizer: Any) -> dict[str, str]:
    """Return a tokenizer's templates by name; a lone one is called ``default``."""
    own = getattr(tokenizer, "chat_template", None)
    if own is None or isinstance(own, str):
        return {"default": own} if own else {}
    items = own.items() if isinstance(own, Mapping) else ((t["name"], t["template"]) for t in own)
    return {str(name): str(text) for name, text in items}


def chosen_template(tokenizer: Any, wanted: str | None, name: str) -> str | None:
    """Return a template's text.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    wanted : str or None
        Jinja text, or the name of one of the tokenizer's own; None is its ``default``.
    name : str
        Name of the role, for errors.

    Returns
    -------
    str or None
        None where none is wanted and the tokenizer has none.

    Raises
    ------
    ModelLoadError
        No template has this name, or several have names and none is the default.
    """
    own = named_templates(tokenizer)
    if wanted is None and not own:
        return None
    if (key := wanted or "default") in own:
        return own[key]
    if wanted is not None and ("{" in wanted or not wanted.strip()):
        return wanted
    known = ", ".join(sorted(own)) or "none"
    raise ModelLoadError(
        f"the {name}'s tokenizer has no chat template named {key!r}; it has: {known}. Set "
        f"{name}.chat_template to one of these names, to Jinja text, or to a .jinja file"
    )


class ChatTemplate:
    """A template that was tried: how it takes contents, and what it does with which turns.

    Parameters
    ----------
    text : str
        Jinja.
    variables : mapping
        Beside the messages: special tokens by name, ``enable_thinking``.
    name : str
        Name of the role, for errors.
    lone : bool
        It will be asked for lone questions only, so that it may forget earlier turns, as the
        templates of some guards do.

    Attributes
    ----------
    parts : bool
        Contents are given as ``[{"type": "text", "text": ...}]``, as nothing else is kept.

    Raises
    ------
    ModelLoadError
        It is no template, it does not end, or it leaves out the text of a user or assistant.
    """

    def __init__(
        self, text: str, variables: Mapping[str, Any], name: str, *, lone: bool = False
    ) -> None:
        self.text, self._variables, self._name = text, dict(variables), name
        try:
            both = _tried(text, json.dumps(self._variables))
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            raise ModelLoadError(
                f"the {name}'s chat template cannot be tried out ({type(error).__name__}): it must "
                f"not take {CPU_SECONDS} s, {MEMORY_BYTES >> 20} MiB or {MAX_CHARACTERS} "
                f"characters for a short conversation; set {name}.chat_template to another"
            ) from error
        # Whole where parts are no better.
        self.parts = max((False, True), key=lambda parts: _kept(both[parts], lone))
        self._tried = both[self.parts]
        asked, turns = self._tried["u"], self._tried["uauauauau"]
        if asked == DROPPED or (turns == DROPPED and not lone):
            raise ModelLoadError(
                f"the {name}'s chat template leaves text of messages out of the prompt, given "
                f"whole and in parts; set {name}.chat_template to one that keeps it"
            )
        if asked != KEPT:
            raise ModelLoadError(f"the {name}'s chat template refuses a lone question: {asked}")

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        text: str,
        name: str,
        *,
        thinking: bool = False,
        lone: bool = False,
    ) -> ChatTemplate:
        """Try a template with a tokenizer's special tokens; arguments as the class's."""
        variables = {
            key: [str(v) for v in value] if isinstance(value, list | tuple) else str(value)
            for key, value in tokenizer.special_tokens_map.items()
        }
        return cls(text, {**variables, "enable_thinking": thinking}, name, lone=lone)

    def outcome(self, *trials: str) -> str:
        """Return what became of these conversations of the trial, the worst first.

        Parameters
        ----------
        trials : str
            One letter a message.

        Returns
        -------
        str
            `KEPT`, `DROPPED`, or why the template refuses one.
        """
        found = {self._tried[roles] for roles in trials}
        if DROPPED in found:
            return DROPPED
        return min(found - {KEPT}, default=KEPT)

    def render(self, messages: Messages, *, answer: bool = False) -> str:
        """Return a conversation as text.

        Parameters
        ----------
        messages : sequence of mappings
            ``{"role": ..., "content": text}``.
        answer : bool
            The last message is an answer; else the generation prompt follows.

        Raises
        ------
        PromptError
            The template refuses these messages.
        """
        try:
            return _rendered(self._compiled, messages, self.parts, answer, self._variables)
        except _RAISED as error:
            raise PromptError(
                f"the {self._name}'s chat template refuses these messages: {_why(error)}"
            ) from error

    @cached_property
    def _compiled(self) -> Template:
        return environment().from_string(self.text)


def holds(rendered: str, messages: Messages) -> bool:
    """Whether a prompt holds every message's text, blanks aside, those of one role in order."""
    solid = _solid(rendered)
    ends: dict[str, int] = {}
    for message in messages:
        text = _solid(message["content"])
        at = solid.find(text, ends.get(message["role"], 0))
        if at < 0:
            return False
        ends[message["role"]] = at + len(text)
    return True


def _solid(text: str) -> str:
    return "".join(text.split())


def _rendered(
    template: Template, messages: Messages, parts: bool, answer: bool, variables: Mapping[str, Any]
) -> str:
    given = [
        {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
        if parts
        else {"role": m["role"], "content": m["content"]}
        for m in messages
    ]
    told = {"tools": None, "documents": None, **variables}
    return template.render(messages=given, add_generation_prompt=not answer, **told)


def _why(error: BaseException) -> str:
    return str(error)[:300] or type(error).__name__


# The trial ---------------------------------------------------------------------------------------


@lru_cache(64)
def _tried(text: str, variables: str) -> list[dict[str, str]]:
    """Return what became of each conversation of the trial, given whole and given in parts."""
    paths = [os.path.abspath(path) for path in sys.path]
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"from {__name__} import _try_out; _try_out()"],
        input=json.dumps([text, json.loads(variables)]).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        timeout=WALL_SECONDS,
        check=True,
    )
    tried: list[dict[str, str]] = json.loads(done.stdout)
    return tried


def _kept(tried: Mapping[str, str], lone: bool) -> tuple[bool, int]:
    usable = tried["u"] == KEPT and (lone or tried["uauauauau"] != DROPPED)
    return usable, sum(outcome == KEPT for outcome in tried.values())


def _try_out() -> None:
    """Read a template from standard input and write what became of each conversation."""
    _limit_this_process()
    text, variables = json.load(sys.stdin.buffer)
    try:
        template = environment().from_string(text)
    except TemplateError as error:
        found = [dict.fromkeys(_TRIALS, _why(error))] * 2
    else:
        found = [
            {roles: _outcome(template, _probe(roles), parts, variables) for roles in _TRIALS}
            for parts in (False, True)
        ]
    json.dump(found, sys.stdout)


def _outcome(
    template: Template, messages: Messages, parts: bool, variables: Mapping[str, Any]
) -> str:
    try:
        rendered = _rendered(template, messages, parts, False, variables)
    except _RAISED as error:
        return _why(error)
    if len(rendered) > MAX_CHARACTERS:
        sys.exit(1)
    # A list that was printed, and not read, holds its texts too.
    printed = parts and re.search(r"""['"]type['"]: """, rendered)
    return KEPT if not printed and holds(rendered, messages) else DROPPED


def _limit_this_process() -> None:
    try:
        import resource
    except ImportError:  # no POSIX: the time on the wall is left
        return
    for limit, wanted in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (most, most))
