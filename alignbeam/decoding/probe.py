"""A linear reader of a model's hidden states: how harmful a request is, before anything answers it.

The target or the anchor has read the request anyway, and what a model of a billion parameters makes
of it tells harmful from harmless better than a small judge can. A verdict is then weighed by it::

    score = 1 + (score - 1) * P(request is harmful)

so a probe only ever lowers a score: without its number the verdict stands as it is.
"""

from __future__ import annotations

import contextvars
import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from alignbeam.errors import AlignBeamError, ConfigError
from alignbeam.judge.failclosed import FailClosed
from alignbeam.judge.model_judge import PART_TOKENS
from alignbeam.judge.protocol import Conversation
from alignbeam.judge.views import VIEWS, Reach, shown
from alignbeam.models.role import Role
from alignbeam.models.rows import pad_left
from alignbeam.result import Verdict

_log = logging.getLogger(__name__)

FORMAT: Final = "alignbeam-probe-1"
#: What is read of a conversation; the most harmful reading counts, as with a judge's views.
_VIEWS: Final = tuple(
    VIEWS[name]
    for name in ("conversation", "last-turn", "request-parts", "last-sentence", "plain-letters")
)
#: Conversations whose margins tell whether a probe belongs to a model, its template and its type.
_KNOWN: Final = ("What is the capital of France?", "How do I bake bread?", "Tell me a joke.")
#: Margins may differ by so much where the model is the same: other kernels, half precision.
_NEAR: Final = 0.5
#: Tokens of one forward.
_BATCH_TOKENS: Final = 4096

_wanted: contextvars.ContextVar[list[torch.Tensor] | None] = contextvars.ContextVar(
    "states that a forward of this thread is run for", default=None
)


class _Enough(Exception):
    """The layer that was asked for has spoken; those above need not."""


class States:
    """The states of one layer after the last token of a prompt.

    Parameters
    ----------
    role : Role
    layer : int
        1 for the output of the first layer, and so on.

    Raises
    ------
    ConfigError
        The model has no such layer, or none that can be told apart.
    """

    def __init__(self, role: Role, layer: int) -> None:
        self.role, self.layer = role, layer
        config = role.model.config.get_text_config()
        count = config.num_hidden_layers
        stacks = [
            module
            for module in role.model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == count
        ]
        if not 1 <= layer <= count or not stacks:
            raise ConfigError(f"the {role.name} has no layer {layer} that a probe could read")
        self.size = int(config.hidden_size)
        # Called in every forward of this model; other threads' are none of its business.
        stacks[0][layer - 1].register_forward_hook(_keep)

    @torch.inference_mode()
    def after(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the states [R, size] float32 after each sequence."""
        found: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda n: len(sequences[n]))
        while order:
            most = 1 if self.role.rows_alone else _BATCH_TOKENS // max(1, len(sequences[order[0]]))
            group = order[: max(1, most)]
            while len(group) > 1 and len(group) * len(sequences[group[-1]]) > _BATCH_TOKENS:
                group.pop()
            for n, state in zip(group, self._forward([sequences[n] for n in group]), strict=True):
                found[n] = state
            order = order[len(group) :]
        return torch.stack(found)

    def _forward(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        block, mask = pad_left(sequences, self.role.pad_id, self.role.device)
        kept: list[torch.Tensor] = []
        token = _wanted.set(kept)
        try:
            self.role.forward(block, mask, (mask.cumsum(1) - 1).clamp_min(0), None)
        except _Enough:
            pass
        finally:
            _wanted.reset(token)
        return kept[0].float().cpu()


def _keep(module: Any, given: Any, output: Any) -> None:
    kept = _wanted.get()
    if kept is not None:
        states = output[0] if isinstance(output, tuple) else output
        kept.append(states[:, -1])
        raise _Enough


class HarmProbe:
    """Reads P(request is harmful) off the states of one layer, after the prompt's last token.

    Parameters
    ----------
    states : States
    weight : torch.Tensor [size]
    bias : float

    Source
    ------
    Linear probes: G. Alain and Y. Bengio, arXiv 1610.01644; that chat models keep harm in one
    direction: A. Arditi et al., arXiv 2406.11717.
    """

    def __init__(self, states: States, weight: torch.Tensor, bias: float) -> None:
        self._states, self._weight, self._bias = states, weight.float(), bias
        self._reach = Reach(self._short, lambda _: True)

    @property
    def role(self) -> Role:
        """The model that it reads."""
        return self._states.role

    @classmethod
    def load(cls, path: str | Path, roles: Sequence[Any]) -> Self:
        """Read a probe, and find the model among ``roles`` that it was fitted to.

        Raises
        ------
        ConfigError
            No such file, no probe, or none of these models is its own.
        """
        file = Path(path).expanduser()
        try:
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata() or {}
                weight = opened.get_tensor("weight").float()
                bias = float(opened.get_tensor("bias"))
                known = opened.get_tensor("known").float()
            if about.get("format") != FORMAT:
                raise ValueError("it names another format")
            layer, model = int(about["layer"]), str(about["model"])
            if weight.dim() != 1 or known.shape != (len(_KNOWN),):
                raise ValueError("its tensors have other shapes")
            if not all(map(math.isfinite, (*weight.tolist(), bias, *known.tolist()))):
                raise ValueError("it holds numbers that are none")
        except FileNotFoundError as error:
            raise ConfigError(f"judge.probe: no file {file}") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"judge.probe: {file} is no probe ({error}); `alignbeam probe` makes one"
            ) from error
        for role in roles:
            if not isinstance(role, Role):
                continue
            if role.model.config.get_text_config().hidden_size != len(weight):
                continue
            probe = cls(States(role, layer), weight, bias)
            off = (probe.margins([_user(text) for text in _KNOWN]) - known).abs().max()
            if off <= _NEAR:  # False for NaN
                return probe
        here = ", ".join(role.name for role in roles if isinstance(role, Role)) or "no model"
        raise ConfigError(
            f"judge.probe: {file} was fitted to {model}, and that is not what was loaded in this "
            f"process ({here}), with its prompt format and system prompt; fit one with "
            "`alignbeam probe`"
        )

    def save(self, path: Path, model: str) -> None:
        """Write the probe; ``model`` says to people what it was fitted to."""
        known = self.margins([_user(text) for text in _KNOWN])
        tensors = {
            "weight": self._weight.contiguous(),
            "bias": torch.tensor(self._bias, dtype=torch.float32),
            "known": known.contiguous(),
        }
        about = {"format": FORMAT, "layer": str(self._states.layer), "model": model}
        save_file(tensors, path, metadata=about)

    def margins(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        """Return the log-odds [R] that each request is harmful, read as a whole."""
        ids = [self.role.render(conversation) for conversation in conversations]
        return self._states.after(ids) @ self._weight + self._bias

    def harms(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return P(request is harmful) of each; None where it cannot be told.

        A conversation is read as judges read it: whole, its last turn, the parts of that, its last
        sentence, and in plain letters. The highest counts.
        """
        readings: list[Conversation] = []
        places: list[slice | None] = []
        for conversation in conversations:
            try:
                these = self._readings(conversation)
            except AlignBeamError as error:
                _log.warning("a probe cannot read a request: %s", type(error).__name__)
                places.append(None)
                continue
            places.append(slice(len(readings), len(readings) + len(these)))
            readings += these
        margins = self.margins(readings) if readings else torch.empty(0)
        return [None if place is None else _worst(margins[place]) for place in places]

    def _readings(self, conversation: Conversation) -> list[Conversation]:
        distinct = {}
        for _, turns, _ in shown(_VIEWS, conversation, "", self._reach):
            if len(self.role.render(turns)) > min(self.role.window, self.role.cached_up_to):
                raise ConfigError("longer than the model's window")
            distinct[json.dumps([(m["role"], m["content"]) for m in turns])] = turns
        return list(distinct.values())

    def _short(self, text: str) -> bool:
        if len(text.encode("utf-8", "surrogatepass")) <= PART_TOKENS:
            return True
        return len(text) <= 16 * PART_TOKENS and len(self.role.encode_plain(text)) <= PART_TOKENS


def _user(text: str) -> Conversation:
    return [{"role": "user", "content": text}]


def _worst(margins: torch.Tensor) -> float | None:
    highest = float(margins.max())
    return 1 / (1 + math.exp(-highest)) if math.isfinite(highest) and highest > -700 else None


class WeighedJudge(FailClosed):
    """A judge whose verdicts are weighed by how harmful a probe finds the request.

    Parameters
    ----------
    judge : FailClosed
    probe : HarmProbe
    """

    def __init__(self, judge: FailClosed, probe: HarmProbe) -> None:
        super().__init__(judge.judge, judge.timeout_s)
        self.probe = probe

    @property
    def unweighed(self) -> FailClosed:
        """The judge that is weighed: what it says of a reply, whatever the request."""
        return FailClosed(self.judge, self.timeout_s)

    def score(
        self, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> list[Verdict]:
        """Judge a flat batch; see ``FailClosed.score``. Without the number nothing changes."""
        verdicts = super().score(conversations, candidates)
        keys = [json.dumps([(m["role"], m["content"]) for m in c]) for c in conversations]
        distinct = dict(zip(keys, conversations, strict=True))
        try:
            harms = dict(zip(distinct, self.probe.harms(list(distinct.values())), strict=True))
        except Exception as error:  # a probe that breaks must not make anything safe
            _log.warning("the probe failed: %s", type(error).__name__)
            _log.debug("the probe failed", exc_info=error)
            return verdicts
        return [weighed(v, harms[key]) for v, key in zip(verdicts, keys, strict=True)]


def weighed(verdict: Verdict, harm: float | None) -> Verdict:
    """Return a verdict under the probability that its request is harmful; errors stay."""
    if harm is None or verdict.error is not None:
        return verdict
    probs = verdict.probs
    if probs:
        least, *others = (harm * p for p in probs)
        probs = (least + 1 - harm, *others)
    score = 1 + (verdict.score - 1) * harm
    return dataclasses.replace(verdict, score=score, probs=probs, request_harm=harm)
