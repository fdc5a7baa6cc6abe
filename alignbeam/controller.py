"""AlignBeam: two models, a bridge, a judge; requests in, judged answers out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, overload

from alignbeam.config import BeamConfig, JudgeConfig, RoleConfig, Settings
from alignbeam.decoding.anchor import Steering
from alignbeam.decoding.batch import Phases
from alignbeam.decoding.beam import Request
from alignbeam.decoding.clock import Clock
from alignbeam.embedded import EMBEDDED_KEY, embedded_model, embedded_rubric
from alignbeam.errors import AlignBeamError, ConfigError
from alignbeam.judge import FailClosed, Judge, load_judge
from alignbeam.judge.selection import select
from alignbeam.models.render import Prompt, as_messages
from alignbeam.models.role import Role
from alignbeam.result import Candidate, Result, Timings
from alignbeam.vocab.bridge import Bridge

#: Requests decoded together; each holds up to ``beams`` rows of KV cache in both models.
DEFAULT_BATCH_SIZE = 16


class AlignBeam:
    """Answers requests with the target, steered by the anchor, chosen by the judge.

    Parameters
    ----------
    target, anchor : Role
        The fine-tuned model whose text the user gets, and the small aligned one that steers it.
    judge : Judge
        Scores finished candidates; wrapped so that every failure counts as unsafe.
    config : BeamConfig
        Defaults of every request.
    bridge : Bridge or None
        Built (or loaded from its cache) where None.

    Examples
    --------
    >>> beam = AlignBeam.from_pretrained()  # the embedded trio
    >>> beam.generate("What is 2 plus 3?").text  # doctest: +SKIP
    """

    def __init__(
        self,
        target: Role,
        anchor: Role,
        judge: Judge,
        config: BeamConfig | None = None,
        *,
        bridge: Bridge | None = None,
    ) -> None:
        self.target = target
        self.anchor = anchor
        self.judge = judge if isinstance(judge, FailClosed) else FailClosed(judge)
        self.config = config or BeamConfig()
        self.bridge = bridge or Bridge.build(
            anchor.tokenizer,
            target.tokenizer,
            anchor.width,
            target.width,
            anchor_end_ids=anchor.end_ids,
            target_end_ids=target.end_ids,
            anchor_opening=anchor.opening,
            target_opening=target.opening,
        )
        self._phases = Phases(target, Steering(anchor, self.bridge, target.device))

    @classmethod
    def from_pretrained(
        cls,
        target: str | RoleConfig | Role | None = None,
        anchor: str | RoleConfig | Role | None = None,
        judge: str | JudgeConfig | Judge | None = None,
        config: BeamConfig | None = None,
    ) -> Self:
        """Load all three models; None is the embedded demonstration model of that role.

        Raises
        ------
        ModelLoadError, TokenizerError, BridgeError, ConfigError
            What cannot be loaded or does not fit, and why.
        """
        if judge is None or isinstance(judge, str | JudgeConfig):
            loaded_judge = load_judge_of(judge)
        else:
            loaded_judge = judge
        return cls(_load_role("target", target), _load_role("anchor", anchor), loaded_judge, config)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Load what a configuration file describes."""
        return cls.from_pretrained(settings.target, settings.anchor, settings.judge, settings.beam)

    def generate(self, prompt: Prompt, **overrides: Any) -> Result:
        """Answer one request.

        Parameters
        ----------
        prompt : str or list of messages
            A user's text, or messages ``{"role": ..., "content": ...}``.
        **overrides
            Fields of ``BeamConfig`` for this request.

        Raises
        ------
        PromptError, ConfigError
            What is wrong with the request.
        JudgeUnavailable
            The judge failed on every candidate.
        UnsafeAnswer
            No candidate passed and ``on_unsafe="raise"``.
        NonFiniteLogits
            A model produced NaN or +inf.
        """
        return self.generate_batch([prompt], overrides)[0]

    @overload
    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        overrides: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = ...,
        *,
        return_exceptions: Literal[False] = ...,
        batch_size: int = ...,
        progress: Callable[[int], object] | None = ...,
        should_cancel: Callable[[], bool] | None = ...,
    ) -> list[Result]: ...

    @overload
    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        overrides: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = ...,
        *,
        return_exceptions: Literal[True],
        batch_size: int = ...,
        progress: Callable[[int], object] | None = ...,
        should_cancel: Callable[[], bool] | None = ...,
    ) -> list[Result | AlignBeamError]: ...

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        overrides: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        return_exceptions: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
        progress: Callable[[int], object] | None = None,
        should_cancel: Callable[[], bool] | None = None,
    ) -> list[Result] | list[Result | AlignBeamError]:
        """Answer many requests, ``batch_size`` at a time; each gets what it would get alone.

        Parameters
        ----------
        prompts : sequence of prompts
        overrides : mapping, sequence of mappings, or None
            Fields of ``BeamConfig`` for all requests, or one mapping for each.
        return_exceptions : bool
            Put a request's error in its place of the list, instead of raising the first one.
        progress : callable or None
            Called with the number of requests just answered.
        should_cancel : callable or None
            Asked between steps; True ends the run.

        Raises
        ------
        Cancelled
            ``should_cancel`` said so. Other errors: see ``generate``.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        each = self._overrides(len(prompts), overrides)
        results: list[Result | AlignBeamError] = []
        for start in range(0, len(prompts), batch_size):
            stop = min(start + batch_size, len(prompts))
            answers = self._answer(prompts[start:stop], each[start:stop], should_cancel)
            failed = next((a for a in answers if isinstance(a, AlignBeamError)), None)
            if failed is not None and not return_exceptions:
                raise failed
            results.extend(answers)
            if progress is not None:
                progress(stop - start)
        return results

    @property
    def phases(self) -> Phases:
        """The decoding of this trio, for schedulers that step it themselves."""
        return self._phases

    def prepare(self, prompt: Prompt, **overrides: Any) -> Request:
        """Check and render one request without decoding it.

        Raises
        ------
        PromptError, ConfigError
            What is wrong with the request.
        """
        return _request(self.target, self.anchor, prompt, self.config.replace(**overrides))

    def conclude(
        self, request: Request, candidates: Sequence[Candidate], timings: Timings
    ) -> Result:
        """Choose among the judged candidates of a decoded request.

        Raises
        ------
        JudgeUnavailable, UnsafeAnswer, NonFiniteLogits, Cancelled
            See ``generate``; also whatever error the request ended with.
        """
        outcome = _result(request, list(candidates), timings)
        if isinstance(outcome, AlignBeamError):
            raise outcome
        return outcome

    def alone(
        self,
        role: Literal["target", "anchor"],
        prompts: Sequence[Prompt],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        progress: Callable[[int], object] | None = None,
        **overrides: Any,
    ) -> list[Candidate]:
        """Generate with one model alone: no mixing, no judge. For comparisons; judged by no one.

        Parameters
        ----------
        role : {"target", "anchor"}
        **overrides
            Fields of ``BeamConfig`` that a single model has (length, sampling, stop strings).
        """
        if role not in ("target", "anchor"):
            raise ConfigError(f"role must be target or anchor, got {role!r}")
        model = self.target if role == "target" else self.anchor
        config = self.config.replace(**{**overrides, "mix_steps": 0, "beams": 1})
        phases = Phases(model, None)
        candidates = []
        for start in range(0, len(prompts), batch_size):
            requests = [
                _request(model, None, prompt, config)
                for prompt in prompts[start : start + batch_size]
            ]
            phases.run(requests, Clock([model.device]))
            for request in requests:
                if request.error is not None:
                    raise request.error
                candidates.append(request.beams[0].candidate())
            if progress is not None:
                progress(len(requests))
        return candidates

    def _overrides(
        self, count: int, overrides: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
    ) -> list[Mapping[str, Any]]:
        if overrides is None or isinstance(overrides, Mapping):
            return [overrides or {}] * count
        if len(overrides) != count:
            raise ConfigError(f"{len(overrides)} overrides for {count} prompts; give one for each")
        return list(overrides)

    def _answer(
        self,
        prompts: Sequence[Prompt],
        overrides: Sequence[Mapping[str, Any]],
        should_cancel: Callable[[], bool] | None,
    ) -> list[Result | AlignBeamError]:
        """Run one batch; the answer or the error of each request."""
        devices = [self.target.device, self.anchor.device]
        clock = Clock(devices)
        prepared: list[Request | AlignBeamError] = []
        for prompt, changes in zip(prompts, overrides, strict=True):
            try:
                config = self.config.replace(**changes)
                prepared.append(_request(self.target, self.anchor, prompt, config))
            except AlignBeamError as error:
                prepared.append(error)
        requests = [r for r in prepared if isinstance(r, Request)]
        if requests:
            self._phases.run(requests, clock, should_cancel)
        judged = self._judge([r for r in requests if r.error is None], clock)
        timings = clock.timings()
        return [
            r if isinstance(r, AlignBeamError) else _result(r, judged.get(id(r), []), timings)
            for r in prepared
        ]

    def _judge(self, requests: Sequence[Request], clock: Clock) -> dict[int, list[Candidate]]:
        """Score the candidates of all requests in one call of the judge."""
        finished = {id(r): [beam.candidate() for beam in r.beams] for r in requests}
        flat = [(r, c) for r in requests for c in finished[id(r)]]
        if not flat:
            return finished
        with clock.part("judge"):
            verdicts = self.judge.score([r.messages for r, _ in flat], [c.text for _, c in flat])
        spoken = iter(verdicts)
        return {
            key: [dataclasses.replace(c, verdict=next(spoken)) for c in candidates]
            for key, candidates in finished.items()
        }


def _result(
    request: Request, candidates: list[Candidate], timings: Timings
) -> Result | AlignBeamError:
    if request.error is not None:
        if isinstance(request.error, AlignBeamError):
            return request.error
        raise request.error
    config = request.config
    try:
        selection = select(candidates, config)
    except AlignBeamError as error:
        return error
    chosen = None if selection.chosen is None else candidates[selection.chosen]
    return Result(
        text=config.refusal_text if chosen is None else chosen.text,
        finish_reason="content_filter" if chosen is None else chosen.finish_reason,
        chosen=selection.chosen,
        reason=selection.reason,
        candidates=tuple(candidates),
        trace=tuple(sorted(request.trace, key=lambda step: (step.step, step.beam))),
        timings=timings,
        prompt_tokens=len(request.target_ids),
        completion_tokens=0 if chosen is None else len(chosen.token_ids),
    )


def _request(target: Role, anchor: Role | None, prompt: Prompt, config: BeamConfig) -> Request:
    """Render a prompt for both models and check that it fits their windows."""
    messages = as_messages(prompt)
    if config.beams > target.width:
        raise ConfigError(
            f"beams must be in 1..{target.width} (the vocabulary), got {config.beams}"
        )
    target_ids = target.render(messages)
    target.check_room(len(target_ids), max(1, config.mix_steps))
    anchor_ids: list[int] = []
    if anchor is not None and config.mix_steps > 0:
        anchor_ids = anchor.render(messages)
        anchor.check_room(len(anchor_ids), config.mix_steps)
    room = target.window - len(target_ids)
    return Request(messages, config, target_ids, anchor_ids, min(config.max_new_tokens, room))


def _load_role(name: str, source: str | RoleConfig | Role | None) -> Role:
    if isinstance(source, Role):
        return source
    config = RoleConfig(model=source) if source is None or isinstance(source, str) else source
    if config.model is None:
        config = config.replace(model=embedded_model(name))
    return Role.from_config(name, config)


def load_judge_of(source: str | JudgeConfig | None) -> Judge:
    """Load a judge with its model; None is the embedded one."""
    config = JudgeConfig(model=source) if source is None or isinstance(source, str) else source
    rubric = key = None
    if config.model is None:
        config = config.replace(model=embedded_model("judge"))
        if config.kind == "rubric":
            rubric, key = embedded_rubric(), EMBEDDED_KEY
    return load_judge(config, Role.from_config("judge", config), rubric=rubric, key=key)
