"""One side of the bridge for the doctor: a tokenizer always, configuration and weights if there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alignbeam.config import RoleConfig
from alignbeam.doctor.report import SideReport
from alignbeam.embedded import embedded_model
from alignbeam.errors import ModelLoadError
from alignbeam.models.loading import load_tokenizer, template_text
from alignbeam.models.render import Renderer
from alignbeam.models.role import Role
from alignbeam.vocab.end_tokens import end_token_ids
from alignbeam.vocab.token_bytes import token_bytes

_WINDOW_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class Side:
    """A role as far as it is at hand.

    Attributes
    ----------
    name, source : str
        The role, and the folder or hub id it was read from.
    tokenizer : PreTrainedTokenizerFast
        Its tokenizer.
    config : PreTrainedConfig or None
        The text model's configuration; None for a folder with a tokenizer only.
    generation_config : GenerationConfig or None
        What the checkpoint says about generation.
    role : Role or None
        The loaded model, where loading was asked for.
    renderer : Renderer
        How messages become its prompt.
    """

    name: str
    source: str
    tokenizer: Any
    config: Any
    generation_config: Any
    role: Role | None
    renderer: Renderer

    @cached_property
    def bytes_of(self) -> list[bytes | None]:
        """What each id adds to a text."""
        return token_bytes(self.tokenizer)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Every id that ends an answer."""
        return end_token_ids(self.tokenizer, self.generation_config)

    @cached_property
    def opening(self) -> bytes:
        """What the template puts between the generation prompt and the answer."""
        return self.renderer.opening()

    @property
    def width(self) -> int | None:
        """Logit columns of the head, where anything tells."""
        if self.role is not None:
            return self.role.width
        return None if self.config is None else int(self.config.vocab_size)

    @property
    def window(self) -> int | None:
        """Positions, where the configuration tells."""
        found = (getattr(self.config, key, None) for key in _WINDOW_KEYS)
        return next((int(window) for window in found if window), None)

    def report(self) -> SideReport:
        """Return what a reader wants to know of this side."""
        tokens, width = len(self.tokenizer), self.width
        return SideReport(
            name=self.name,
            source=self.source,
            tokens=tokens,
            width=width,
            padded_columns=max(0, (width or tokens) - tokens),
            end_tokens=tuple(self.tokenizer.convert_ids_to_tokens(list(self.end_ids))),
            has_template=self.renderer.has_template,
            opening=self.opening.decode("utf-8", "backslashreplace"),
            window=self.window,
        )


def open_side(name: str, settings: RoleConfig, *, load: bool) -> Side:
    """Read one side.

    Parameters
    ----------
    name : str
        ``"target"``, ``"anchor"`` or ``"judge"``.
    settings : RoleConfig
        Its ``model`` is a folder (a tokenizer alone is enough) or hub id; None is the embedded
        model. Prompt settings count as they would for an answer.
    load : bool
        Load the weights too.

    Raises
    ------
    ModelLoadError
        No tokenizer there, or no weights where they were asked for.
    """
    path = embedded_model(name) if settings.model is None else settings.model
    if load:
        role = Role.from_config(name, settings.replace(model=path))
        tokenizer = role.tokenizer
    else:
        role, tokenizer = None, load_tokenizer(path, name=name, revision=settings.revision)
    renderer = Renderer(
        tokenizer,
        name,
        system_prompt=settings.system_prompt,
        chat_template=template_text(settings.chat_template),
        thinking=settings.thinking,
    )
    source = f"the embedded {name}" if settings.model is None else settings.model
    configs = _text_config(path), _generation_config(path)
    return Side(name, source, tokenizer, *configs, role, renderer)


def weights_folder(settings: RoleConfig, name: str) -> Path | None:
    """Return the local folder of a model where it has one, for counting its weights."""
    path = embedded_model(name) if settings.model is None else settings.model
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def _text_config(path: str) -> Any:
    from transformers import AutoConfig

    if Path(path).is_dir() and not Path(path, "config.json").is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"cannot read the configuration of {path}: {error}") from error
    return config.get_text_config()


def _generation_config(path: str) -> Any:
    from transformers import GenerationConfig

    if Path(path).is_dir() and not Path(path, "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(path)
    except (OSError, ValueError):
        return None  # a repository without one: the tokenizer and the template name the ends
