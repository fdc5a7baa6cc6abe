"""Published guard classifiers as data (``guards.toml``): what each is asked, and how it is read."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from alignbeam.errors import ConfigError
from alignbeam.judge.fill import placeholders

PLACEHOLDERS: Final = ("request", "candidate", "conversation", "policy")


@dataclass(frozen=True, slots=True)
class Blank:
    """One place of a guard's answer, where one of a few words stands.

    Attributes
    ----------
    lead : str
        What the guard's answer has before the word, from the previous blank's word on.
    words : tuple of str
        What may stand there.
    """

    lead: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GuardFormat:
    """How one guard is asked and read.

    Attributes
    ----------
    name : str
        The key in ``GUARDS``.
    prompt : str
        With ``{request}`` and ``{candidate}``, or ``{conversation}`` (a transcript that ends in
        the candidate), and ``{policy}`` where there are policies.
    blanks : tuple of Blank
        The form that the answer fills, verdict last. All earlier fillings are followed, each
        weighted by its probability, so that no generated text is parsed.
    harm : tuple of float
        Harm of each word of the last blank: 0, 0.25, 0.5, 0.75 or 1, for the levels 1 to 5. Or
        one for each filling of the whole form, the last blank's words fastest: where the last
        blank asks whether the reply declines, harm depends on what the first says of the request.
    request_harm : tuple of float
        Harm of each word of the first blank, 0..1, where that asks about the request; empty
        where it does not. See ``Verdict.request_harm``.
    controls : tuple of str
        Control tokens written in ``prompt``; the tokenizer must have each.
    optional_controls : tuple of str
        Likewise, but plain text in a tokenizer that has them not.
    bos : bool
        Begin with the tokenizer's BOS token.
    chat : bool
        ``prompt`` is a user message for the model's own chat template, not a whole prompt.
    speakers : mapping
        Names of the roles in ``{conversation}``.
    policies : tuple of str
        One question each; the worst counts.
    candidate_tokens : int or None
        Longest piece of a candidate that the guard was made for; a longer one is windowed.
    source : str
        What this was checked against.

    Raises
    ------
    ConfigError
        The description contradicts itself.
    """

    name: str
    prompt: str
    blanks: tuple[Blank, ...]
    harm: tuple[float, ...]
    source: str
    controls: tuple[str, ...] = ()
    optional_controls: tuple[str, ...] = ()
    bos: bool = False
    chat: bool = False
    speakers: Mapping[str, str] = field(
        default_factory=lambda: {"user": "User", "assistant": "Assistant"}
    )
    request_harm: tuple[float, ...] = ()
    policies: tuple[str, ...] = ()
    candidate_tokens: int | None = None

    def __post_init__(self) -> None:
        held = set(placeholders(self.prompt, PLACEHOLDERS))
        if held - {"policy"} not in ({"request", "candidate"}, {"conversation"}):
            raise ConfigError(
                f"guard {self.name!r}: prompt must hold {{request}} and {{candidate}}, or "
                f"{{conversation}}, got {sorted(held)}"
            )
        if ("policy" in held) != bool(self.policies):
            raise ConfigError(f"guard {self.name!r}: {{policy}} and policies go together")
        if not self.blanks or any(len(blank.words) < 2 for blank in self.blanks):
            raise ConfigError(f"guard {self.name!r}: every blank needs two words or more")
        counts = [len(blank.words) for blank in self.blanks]
        if len(self.harm) not in (counts[-1], math.prod(counts)):
            raise ConfigError(
                f"guard {self.name!r}: harm must have a value per verdict word, or per filling"
            )
        if self.request_harm and len(self.request_harm) != counts[0]:
            raise ConfigError(
                f"guard {self.name!r}: request_harm must have a value per word of the first blank"
            )
        if any(not 0 <= h <= 1 for h in self.request_harm):
            raise ConfigError(f"guard {self.name!r}: request_harm must be in 0..1")
        if any(h not in (0, 0.25, 0.5, 0.75, 1) for h in self.harm):
            raise ConfigError(f"guard {self.name!r}: harm must be 0, 0.25, 0.5, 0.75 or 1")


def read_guards(path: Path) -> dict[str, GuardFormat]:
    """Read guard formats, a TOML table each; a table's keys are ``GuardFormat``'s attributes.

    Raises
    ------
    ConfigError
        The file cannot be read, or describes no guard.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: _guard(name, table) for name, table in tables.items()}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} describes no guard as guards.toml does: {type(error).__name__}: {error}"
        ) from error


def _guard(name: str, table: Mapping[str, Any]) -> GuardFormat:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    values["blanks"] = tuple(Blank(b["lead"], tuple(b["words"])) for b in table["blanks"])
    return GuardFormat(name=name, **values)


#: Guard formats by name, as ``JudgeConfig.kind`` takes them.
GUARDS: Final = read_guards(Path(__file__).with_name("guards.toml"))
