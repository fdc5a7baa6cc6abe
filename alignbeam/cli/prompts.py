"""Where prompts come from: an argument, standard input, a file of lines or of rows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from alignbeam.data_file import ROWS, Row, decode, read_rows, read_text
from alignbeam.errors import PromptError
from alignbeam.models.conversation import Prompt

_ASK = (
    "no prompt: give one as an argument, pipe it in, or name a file with --file "
    "(see alignbeam generate --help)"
)


@dataclass(frozen=True, slots=True)
class PlacedPrompt:
    """One prompt and where it stood, for messages about it."""

    prompt: Prompt
    where: str

    @property
    def record(self) -> dict[str, Prompt]:
        """The prompt under its own name, as it opens a line of ``--json``."""
        return {"prompt" if isinstance(self.prompt, str) else "messages": self.prompt}

    def with_system(self, system: str | None) -> PlacedPrompt:
        """Return the request with a system message before it, unless it brings its own."""
        if system is None:
            return self
        own = self.prompt
        if isinstance(own, str):
            own = [{"role": "user", "content": own}]
        if own and own[0].get("role") in ("system", "developer") and own[0].get("content"):
            return self
        return PlacedPrompt([{"role": "system", "content": system}, *own], self.where)


def read_prompts(prompt: str | None, file: str | None) -> list[PlacedPrompt]:
    """Return the requests of one call.

    Parameters
    ----------
    prompt : str or None
        The argument; ``"-"`` reads one prompt from standard input, and so does no argument where
        standard input is not a terminal.
    file : str or None
        A file with one prompt a line, or, where its name says so (``data_file.ROWS``), rows with
        a ``"prompt"`` or, in JSON, ``"messages"``; ``"-"`` reads lines from standard input.

    Raises
    ------
    ConfigError, PromptError
        No prompt, both, an unreadable file, or a line that holds none; says which line.
    """
    if file is not None:
        if prompt is not None:
            raise PromptError("give a prompt or --file, not both")
        return _from_file(file)
    if prompt is None and sys.stdin.isatty():
        raise PromptError(_ASK)
    if prompt is None or prompt == "-":
        text = _standard_input().removesuffix("\n")
        if not text.strip():
            raise PromptError(_ASK)
        return [PlacedPrompt(text, "standard input")]
    return [PlacedPrompt(prompt, "the prompt")]


def _standard_input() -> str:
    return decode(sys.stdin.buffer.read(), "standard input").replace("\r\n", "\n")


def _from_file(file: str) -> list[PlacedPrompt]:
    path = Path(file)
    if path.suffix.lower() in ROWS:
        requests = [PlacedPrompt(_prompt_of(row), row.where) for row in read_rows(path)]
    else:
        where = "standard input" if file == "-" else file
        text = _standard_input() if file == "-" else read_text(path).replace("\r\n", "\n")
        # Only line feeds part lines: a prompt may hold U+2028 and the like.
        requests = [
            PlacedPrompt(line, f"{where}, line {number}")
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    if not requests:
        raise PromptError(f"{file} holds no prompt")
    return requests


def _prompt_of(row: Row) -> Prompt:
    asked = [name for name in row if name.strip().casefold() in ("prompt", "messages")]
    if len(asked) != 1:
        raise PromptError(
            f'{row.where} must have either "prompt" or "messages"; it has '
            f"{', '.join(map(repr, row))}"
        )
    value, wants = row[asked[0]], asked[0].strip().casefold()
    if wants == "prompt" and not isinstance(value, str):
        raise PromptError(f'{row.where}: "prompt" must be a string')
    if wants == "messages" and not (
        isinstance(value, list) and all(isinstance(m, dict) for m in value)
    ):
        raise PromptError(f'{row.where}: "messages" must be a list of objects')
    prompt: Prompt = value
    return prompt
