"""One side of the bridge for the doctor: a tokenizer always, configuration and weights if there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbeam.config import RoleConfig
from alignbeam.doctor.report import SideReport
from alignbeam.embedded import embedded_model
from alignbeam.errors import ModelLoadError
from alignbeam.models.loading import (
    checkpoint_of,
    load_generation_config,
    load_tokenizer,
    template_text,
    tokenizer_source,
    window_of,
)
from alignbeam.models.render import Renderer
from alignbeam.models.role import Role
from alignbeam.vocab.end_tokens import end_token_ids
from alignbeam.vocab.vocabulary import Vocabulary


@dataclass(frozen=True)
class Side:
    """A role as far as it is at hand.

    Attributes
    ----------
    name, source : str
        The role, and the folder or hub id it was read from.
    vocabulary : Vocabulary
        As wide as the tokenizer where no configuration tells the head's width.
    has_template : bool
        Whether a chat template is declared.
    config : PreTrainedConfig or None
        The text model's configuration; None for a folder with a tokenizer only.
    role : Role or None
        The loaded model, where loading was asked for.
    folded, refused : tuple of str
        See ``alignbeam.models.render.Renderer``.
    """

    name: str
    source: str
    vocabulary: Vocabulary
    has_template: bool
    config: Any = None
    role: Role | None = None
    folded: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def report(self) -> SideReport:
        """Return what a reader wants to know of this side."""
        tokenizer, width = self.vocabulary.tokenizer, self.vocabulary.width
        return SideReport(
            name=self.name,
            source=self.source,
            tokens=len(tokenizer),
            width=None if self.config is None else width,
            padded_columns=0 if self.config is None else width - len(tokenizer),
            end_tokens=tuple(tokenizer.convert_ids_to_tokens(list(self.vocabulary.end_ids))),
            has_template=self.has_template,
            opening=self.vocabulary.opening.decode("utf-8", "backslashreplace"),
            window=window_of(self.config),
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
    TokenizerError
        The tokenizer does not fit the head.
    """
    path = embedded_model(name) if settings.model is None else settings.model
    source = f"the embedded {name}" if settings.model is None else settings.model
    if load:
        role = Role.from_config(name, settings.replace(model=path))
        config = role.model.config.get_text_config()
        turns = role.folded, role.refused
        return Side(name, source, role.vocabulary, role.has_template, config, role, *turns)
    tokenizer_path, revision = tokenizer_source(settings.replace(model=path), name)
    tokenizer = load_tokenizer(tokenizer_path, name=name, revision=revision)
    path = checkpoint_of(path, name=name, revision=settings.revision)
    renderer = Renderer(
        tokenizer,
        name,
        system_prompt=settings.system_prompt,
        chat_template=template_text(settings.chat_template),
        thinking=settings.thinking,
        fold_turns=settings.fold_turns,
    )
    config = _text_config(path)
    # An adapter that adds tokens widens the head.
    widened = tokenizer_path == settings.adapter
    vocabulary = Vocabulary.of(
        tokenizer,
        None if config is None else max(config.vocab_size, len(tokenizer) if widened else 0),
        end_token_ids(tokenizer, load_generation_config(path), renderer.own_template),
        renderer.opening(),
        name,
    )
    renderer.check_fits(vocabulary.width)
    turns = renderer.folded, renderer.refused
    return Side(name, source, vocabulary, renderer.has_template, config, None, *turns)


def weights_folder(settings: RoleConfig, name: str) -> Path | None:
    """Return the local folder of a model where it has one, for counting its weights."""
    path = embedded_model(name) if settings.model is None else settings.model
    folder = Path(checkpoint_of(path, name=name, revision=settings.revision))
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
