"""Where prompts come from: an argument, standard input, a file of lines, a file of JSON lines."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbeam.errors import PromptError

Prompt = str | list[dict[str, str]]

_ASK = (
    "no prompt: give one as an argument, pipe it in, or name a file with --file "
    "(see alignbeam generate --help)"
)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and where it stood, for messages about it."""

    prompt: Prompt
    where: str

    @property
    def record(self) -> dict[str, Prompt]:
        """The prompt under its own name, as it opens a line of ``--json``."""
        return {"prompt" if isinstance(self.prompt, str) else "messages": self.prompt}

    def with_system(self, system: str | None) -> Request:
        """Return the request with a system message before it, unless it brings its own."""
        if system is None:
            return self
        messages = (
            [{"role": "user", "content": self.prompt}]
            if isinstance(self.prompt, str)
            else self.prompt
        )
        if messages and messages[0].get("role") == "system":
            return self
        return Request([{"role": "system", "content": system}, *messages], self.where)


def read_requests(prompt: str | None, file: str | None) -> list[Request]:
    """Return the requests of one call.

    Parameters
    ----------
    prompt : str or None
        The argument; ``"-"`` reads one prompt from standard input, and so does no argument where
        standard input is not a terminal.
    file : str or None
        A file with one prompt a line, or, where its name ends in ``.jsonl``, one JSON object a
        line with ``"prompt"`` or ``"messages"``; ``"-"`` reads lines from standard input.

    Raises
    ------
    PromptError
        No prompt, both, an unreadable file, or a line that holds none; says which line.
    """
    if file is not None:
        if prompt is not None:
            raise PromptError("give a prompt or --file, not both")
        return _from_lines(file)
    if prompt is None and sys.stdin.isatty():
        raise PromptError(_ASK)
    if prompt is None or prompt == "-":
        text = _decode(sys.stdin.buffer.read(), "standard input").removesuffix("\n")
        if not text.strip():
            raise PromptError(_ASK)
        return [Request(text, "standard input")]
    return [Request(prompt, "the prompt")]


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{where} is not UTF-8 (byte {error.start}); convert it, for instance with iconv"
        ) from error


def _from_lines(file: str) -> list[Request]:
    if file == "-":
        where, data = "standard input", sys.stdin.buffer.read()
    else:
        where = file
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise PromptError(f"cannot read {file}: {error.strerror or error}") from error
    parse = _parse_json if file.lower().endswith(".jsonl") else _parse_plain
    # Only line feeds part lines: a prompt may hold U+2028 and the like.
    lines = _decode(data, where).replace("\r\n", "\n").split("\n")
    requests = [
        Request(parse(line, f"{where}, line {number}"), f"{where}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not requests:
        raise PromptError(f"{where} holds no prompt")
    return requests


def _parse_plain(line: str, where: str) -> Prompt:
    return line


def _parse_json(line: str, where: str) -> Prompt:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise PromptError(f'{where} must be an object with either "prompt" or "messages"')
    if "messages" in value:
        messages = value["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise PromptError(f'{where}: "messages" must be a list of objects')
        return messages
    if not isinstance(value["prompt"], str):
        raise PromptError(f'{where}: "prompt" must be a string')
    return value["prompt"]
