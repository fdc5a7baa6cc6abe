"""``alignbeam chat``: a conversation, each answer mixed and judged before it is shown."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignbeam.cli import options
from alignbeam.cli.console import load_beam, make_console, shown
from alignbeam.cli.exit import report
from alignbeam.config import from_flat, read_value
from alignbeam.errors import AlignBeamError, ConfigError
from alignbeam.terminal.text import printable

if TYPE_CHECKING:
    from alignbeam import AlignBeam
    from alignbeam.config import BeamConfig
    from alignbeam.result import Result

HELP = """\
/reset            forget the conversation
/explain          how the last answer came about
/set NAME VALUE   change a setting, such as: /set alpha 0.3; /set alone lists them
/help             this list
/quit             leave (so does Ctrl-D)"""

EPILOG = f"In the chat:\n\n{HELP.replace(chr(10), chr(10) * 2)}"


class Conversation:
    """The turns so far, the settings of the next one, and the last result."""

    def __init__(self, beam: AlignBeam, config: BeamConfig, system: str | None = None) -> None:
        self._beam = beam
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[dict[str, str]] = []
        self.config = config
        self.changed: dict[str, Any] = {}
        self.last: Result | None = None

    def ask(self, text: str) -> Result:
        """Answer ``text``; a turn that fails leaves the conversation as it was."""
        question = {"role": "user", "content": text}
        result = self._beam.generate([*self._system, *self.turns, question], **self.changed)
        self.turns += [question, {"role": "assistant", "content": result.text}]
        self.last = result
        return result

    def reset(self) -> None:
        """Forget every turn."""
        self.turns.clear()
        self.last = None

    def change(self, name: str, value: str) -> None:
        """Set ``name`` for the turns to come; ``value`` is read as TOML, else as text.

        Raises
        ------
        ConfigError
            No such setting, or a value that it cannot have.
        """
        tables = from_flat({name: read_value(value)})
        changes = tables.pop("beam", {})
        if tables:
            raise ConfigError(f"{name} is read when a chat begins: alignbeam chat --set {name}=...")
        self.config = self.config.replace(**changes)
        self.changed |= changes


@options.with_settings()
def chat(
    context: typer.Context,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="System message before the prompt."),
    ] = None,
) -> None:
    """Talk with the specialist, turn by turn."""
    settings = options.settings_from(context.params)
    conversation = Conversation(load_beam(settings), settings.beam, system)
    if sys.stdin.isatty():
        print("/help lists what you can do; Ctrl-D leaves", file=sys.stderr)
    while True:
        line = _read_line()
        if line is None or line.split()[:1] == ["/quit"]:
            return
        if line.startswith("/"):
            _command(conversation, line)
        elif line.strip():
            _turn(conversation, line)


def _read_line() -> str | None:
    """Return the next line, None at the end; line editing where there is a terminal."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    with contextlib.suppress(ImportError):  # a Python built without it has plain input
        import readline  # noqa: F401  (gives input() a history and keys)
    try:
        return input("> ")
    except EOFError:
        print(file=sys.stderr)
        return None


def _turn(conversation: Conversation, line: str) -> None:
    try:
        result = conversation.ask(line)
    except AlignBeamError as error:
        report(error)
        return
    print(shown(result.text, sys.stdout), flush=True)


def _command(conversation: Conversation, line: str) -> None:
    name, *rest = line.split(maxsplit=2)
    if name == "/reset":
        conversation.reset()
    elif name == "/explain":
        _explain(conversation.last)
    elif name == "/set":
        _set(conversation, rest)
    elif name == "/help":
        print(HELP, file=sys.stderr)
    else:
        print(f"no command {printable(name)}; /help lists them", file=sys.stderr)


def _explain(result: Result | None) -> None:
    if result is None:
        print("nothing was answered yet", file=sys.stderr)
        return
    from alignbeam.terminal.explain import explain

    make_console(sys.stderr).print(explain(result))


def _set(conversation: Conversation, words: list[str]) -> None:
    if not words:
        for name in conversation.config.known_keys():
            print(f"{name} = {getattr(conversation.config, name)!r}", file=sys.stderr)
        return
    if len(words) != 2:
        report(ConfigError("give a name and a value, such as: /set alpha 0.3"))
        return
    try:
        conversation.change(words[0], words[1])
    except AlignBeamError as error:
        report(error)
