"""AlignBeam as a model of lm-evaluation-harness: ``generate_until``, and no likelihoods."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from alignbeam.controller import DEFAULT_BATCH_SIZE
from alignbeam.errors import AlignBeamError, ConfigError, PromptError
from alignbeam.harness.loading import EMBEDDED, load
from alignbeam.models.conversation import Message

_log = logging.getLogger(__name__)

#: Settings of a generation that are ours too, by lm-eval's name.
_SETTINGS: Final = {
    "max_gen_toks": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
}
#: Settings that tasks write down although these values change nothing.
_NEUTRAL: Final = {"num_beams": 1, "repetition_penalty": 1.0}


class NoLikelihood(AlignBeamError, NotImplementedError):
    """A likelihood was asked for; a steered, judged answer has none."""


@register_model("alignbeam")
class AlignBeamLM(LM):  # type: ignore[misc]
    """Model ``alignbeam``.

    Parameters
    ----------
    target : str
        ``embedded``, a folder or a hub id.
    batch_size : int or str
        Requests answered together; ``auto`` takes the library's default.
    max_batch_size
        Taken because lm-eval hands it over; nothing is searched for, so it is not used.
    device : str or None
        Of all three models. lm-eval's command line says ``cuda:0`` unless told otherwise, so
        where there is no GPU that means the CPU, as it does for lm-eval's own models.
    **arguments
        See ``alignbeam.harness.loading.load``.
    """

    def __init__(
        self,
        target: str = EMBEDDED,
        batch_size: int | str = DEFAULT_BATCH_SIZE,
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            _log.warning("there is no GPU for device %s: using the CPU", device)
            device = None
        given = {**arguments, "device": device, "batch_size": batch_size}
        loaded = load(target, given)
        self.beam = loaded.beam
        self.batch_size = loaded.batch_size
        self._target = target

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer requests, in order, ``batch_size`` at a time.

        Raises
        ------
        PromptError, ConfigError
            A request or a setting that cannot be had, by name; nothing is left out in silence.
        JudgeUnavailable, UnsafeAnswer, NonFiniteLogits
            See ``AlignBeam.generate``. What was answered before is in lm-eval's cache, where
            ``--use_cache`` names one.
        """
        answers: list[str] = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="alignbeam") as bar:
            for start in range(0, len(requests), self.batch_size):
                batch = requests[start : start + self.batch_size]
                results = self.beam.generate_batch(
                    [messages_of(request.args[0]) for request in batch],
                    [self._overrides(request.args[1]) for request in batch],
                    batch_size=len(batch),
                )
                for request, result in zip(batch, results, strict=True):
                    self.cache_hook.add_partial("generate_until", request.args, result.text)
                    answers.append(result.text)
                bar.update(len(batch))
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refuse: see ``NoLikelihood``."""
        _refuse("loglikelihood")

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> NoReturn:
        """Refuse: see ``NoLikelihood``."""
        _refuse("loglikelihood_rolling")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> JsonChatStr:
        """Keep a conversation as messages: each role renders them by its own template."""
        if not add_generation_prompt:
            raise PromptError(
                "the task prefills the answer (gen_prefix), and the answer's first tokens are "
                "the ones that are steered; use the task's variant without gen_prefix"
            )
        return JsonChatStr(json.dumps(chat_history, ensure_ascii=False))

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the target's template, for lm-eval's records."""
        return self.beam.target.chat_template if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval caches rendered requests."""
        return f"alignbeam/{self._target}".replace("/", "__")

    def _overrides(self, generation: dict[str, Any]) -> dict[str, Any]:
        """Return a task's generation settings as fields of ``BeamConfig``."""
        given = dict(normalize_gen_kwargs(generation, self.beam.config.max_new_tokens))
        stop = tuple(text for text in given.pop("until") if text)
        del given["do_sample"]  # it has become the temperature
        found: dict[str, Any] = {"stop": stop}
        for name, value in given.items():
            if name in _SETTINGS:
                found[_SETTINGS[name]] = value
            elif value != _NEUTRAL.get(name, None):
                raise ConfigError(
                    f"alignbeam does not take the generation setting {name} = {value!r}; override "
                    "the task's with --gen_kwargs, or leave it out"
                )
        return found


def messages_of(context: str | JsonChatStr) -> list[Message]:
    """Return a request's context as messages; plain text is one user message."""
    if isinstance(context, str):
        return [{"role": "user", "content": context}]
    return [{"role": m["role"], "content": m["content"]} for m in json.loads(context.prompt)]


def _refuse(what: str) -> NoReturn:
    raise NoLikelihood(
        f"alignbeam has no {what}: its answer's first tokens come from a mix of two models and "
        "the answer from a judge's choice among several, so no text has one probability. Use a "
        "task of output_type generate_until (gsm8k, or a *_generative variant), or measure the "
        "target alone with --model hf"
    )
