"""AlignBeam: two models, a bridge, a judge; requests in, judged answers out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

from alignbeam.config import BeamConfig, GateConfig, JudgeConfig, RoleConfig, Settings
from alignbeam.decoding.anchor import AnchorSteering
from alignbeam.decoding.beam import Request
from alignbeam.decoding.check import check_settings
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.decode import decode
from alignbeam.decoding.gate import Gate
from alignbeam.decoding.probe import HarmProbe, WeighedJudge
from alignbeam.embedded import or_embedded, warn_of_embedded
from alignbeam.engines.role import RemoteRole
from alignbeam.engines.roles import AnyRole, check_shared, role_of
from alignbeam.errors import AlignBeamError, ConfigError
from alignbeam.judge import FailClosed, Judge, load_judge
from alignbeam.judge.early import survivors
from alignbeam.judge.selection import Selection, select
from alignbeam.models.conversation import Prompt
from alignbeam.models.role import Role
from alignbeam.result import Candidate, Result, Timings
from alignbeam.vocab.bridge import Bridge

#: Requests decoded together; each holds up to ``beams`` rows of KV cache in both models.
DEFAULT_BATCH_SIZE = 16

#: Fields of ``BeamConfig`` for all requests, or one mapping for each.
Overrides = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


class AlignBeam:
    """Answers requests with the target, steered by the anchor, chosen by the judge.

    Parameters
    ----------
    target, anchor : Role or RemoteRole
        The fine-tuned model whose text the user gets, and the small aligned one that steers it;
        either may be on an engine.
    judge : Judge
        Scores finished candidates; wrapped so that every failure counts as unsafe.
    config : BeamConfig
        Defaults of every request.
    bridge : Bridge or None
        Built (or loaded from its cache) where None.
    gate : GateConfig or None
        Which requests need no steering; None steers all. No request can change it.

    Raises
    ------
    ConfigError, BackendUnavailable
        Settings that these models, or this machine, can never follow.

    Examples
    --------
    >>> beam = AlignBeam.from_pretrained()  # the embedded trio
    >>> beam.generate("What is 2 plus 3?").text  # doctest: +SKIP
    """

    def __init__(
        self,
        target: AnyRole,
        anchor: AnyRole,
        judge: Judge,
        config: BeamConfig | None = None,
        *,
        bridge: Bridge | None = None,
        gate: GateConfig | None = None,
    ) -> None:
        self.target = target
        self.anchor = anchor
        self.judge = judge if isinstance(judge, FailClosed) else FailClosed(judge)
        self.config = config or BeamConfig()
        self.gate = gate or GateConfig()
        self.bridge = bridge or Bridge.build(anchor.vocabulary, target.vocabulary)
        check_shared((target, anchor, self.judge.role))
        self.steering = AnchorSteering(anchor, self.bridge, target.device)
        check_settings(target, self.steering, self.config)

    @classmethod
    def from_pretrained(
        cls,
        target: str | RoleConfig | AnyRole | None = None,
        anchor: str | RoleConfig | AnyRole | None = None,
        judge: str | JudgeConfig | Judge | None = None,
        config: BeamConfig | None = None,
        *,
        gate: GateConfig | None = None,
        probe: str | None = None,
    ) -> Self:
        """Load all three models.

        Parameters
        ----------
        target, anchor : str, RoleConfig, role or None
            Folder, hub id, GGUF file or an engine's address; how such a model is loaded; one that
            is; or None, the embedded demonstration model of that role.
        judge : str, JudgeConfig, Judge or None
            Likewise; a judge that is ready made may be any (``alignbeam.judge.CallableJudge``).
        config : BeamConfig or None
            The settings of every answer that says nothing else.
        gate : GateConfig or None
            Which requests need no steering; None steers all.
        probe : str or None
            The file that a ``JudgeConfig`` would name, for a judge that is ready made.

        Raises
        ------
        ModelLoadError, TokenizerError, BridgeError, ConfigError, BackendUnavailable
            What cannot be loaded or does not fit, and why.
        """
        if judge is None or isinstance(judge, str | JudgeConfig):
            warn_of_embedded(target=target, anchor=anchor, judge=judge)
            probe = judge.probe if isinstance(judge, JudgeConfig) else probe
            judge = load_judge_of(judge)
        else:
            warn_of_embedded(target=target, anchor=anchor)
        # In the first step one more than ``top_b``: the opening token is none of the answer.
        best = (config or BeamConfig()).top_b + 1
        roles = _load_role("target", target), _load_role("anchor", anchor, best)
        if probe is not None:
            judge = judge if isinstance(judge, FailClosed) else FailClosed(judge)
            judge = WeighedJudge(judge, HarmProbe.load(probe, roles))
        return cls(*roles, judge, config, gate=gate)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Load what a configuration file describes."""
        models = settings.target, settings.anchor, settings.judge
        return cls.from_pretrained(*models, settings.beam, gate=settings.gate)

    def with_gate(self, gate: GateConfig | None) -> Self:
        """Return the same models under other gates."""
        other = copy.copy(self)
        other.gate = gate or GateConfig()
        return other

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

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        overrides: Overrides = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        should_cancel: Callable[[], bool] | None = None,
    ) -> list[Result]:
        """Answer many requests; the first error of any is raised. See ``outcomes``."""
        found = self.outcomes(
            prompts, overrides, batch_size=batch_size, should_cancel=should_cancel
        )
        return [_or_raise(outcome) for outcome in found]

    def outcomes(
        self,
        prompts: Sequence[Prompt],
        overrides: Overrides = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        should_cancel: Callable[[], bool] | None = None,
    ) -> Iterator[Result | AlignBeamError]:
        """Yield the answer or the error of each request, in order, as their batches are done.

        Parameters
        ----------
        prompts : sequence of prompts
        overrides : mapping, sequence of mappings, or None
            Fields of ``BeamConfig`` for all requests, or one mapping for each.
        batch_size : int
            Requests that decode together; each gets what it would get alone.
        should_cancel : callable or None
            Asked between steps; True ends the run.

        Raises
        ------
        ConfigError
            A batch size below 1, or overrides that do not pair up with the prompts.
        Cancelled
            ``should_cancel`` said so.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        if overrides is None or isinstance(overrides, Mapping):
            overrides = [overrides or {}] * len(prompts)
        if len(overrides) != len(prompts):
            raise ConfigError(
                f"{len(overrides)} overrides for {len(prompts)} prompts; give one for each"
            )
        return self._outcomes(list(zip(prompts, overrides, strict=True)), batch_size, should_cancel)

    def _outcomes(
        self,
        pairs: Sequence[tuple[Prompt, Mapping[str, Any]]],
        batch_size: int,
        should_cancel: Callable[[], bool] | None,
    ) -> Iterator[Result | AlignBeamError]:
        for start in range(0, len(pairs), batch_size):
            clock = Clock([self.target.device, self.anchor.device])
            prepared: list[Request | AlignBeamError] = []
            for prompt, changes in pairs[start : start + batch_size]:
                try:
                    prepared.append(self.prepare(prompt, **changes))
                except AlignBeamError as error:
                    prepared.append(error)
            requests = [r for r in prepared if isinstance(r, Request)]
            self._ask_about(requests, clock)
            look = partial(self._look, [r for r in requests if r.config.early_every > 0], clock)
            decode(self.target, self.steering, requests, clock, should_cancel, look)
            judged = self._judge([r for r in requests if r.error is None], clock)
            for one in prepared:
                if isinstance(one, Request):
                    yield self._outcome(one, judged.get(one, ()), spent(one, clock))
                else:
                    yield one

    def prepare(self, prompt: Prompt, **overrides: Any) -> Request:
        """Check and render one request without decoding it.

        Raises
        ------
        PromptError, ConfigError
            What is wrong with the request.
        """
        config = self.config.replace(**overrides)
        request = Request.of(self.target, self.anchor, prompt, config)
        if self.gate.use and config.mix_steps > 0:
            request.gate = Gate(self.gate)
        return request

    def alone(
        self,
        role: Literal["target", "anchor"],
        prompts: Sequence[Prompt],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **overrides: Any,
    ) -> Iterator[Candidate]:
        """Yield what one model alone says: no mixing, no judge. For comparisons only.

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

        def candidates() -> Iterator[Candidate]:
            for start in range(0, len(prompts), batch_size):
                chunk = prompts[start : start + batch_size]
                requests = [Request.of(model, None, prompt, config) for prompt in chunk]
                decode(model, None, requests, Clock([model.device]))
                for request in requests:
                    if request.error is not None:
                        raise request.error
                    yield request.beams[0].candidate()

        return candidates()

    def _ask_about(self, requests: Sequence[Request], clock: Clock) -> None:
        """Read the gate that asks the judge about requests, before they are decoded."""
        asked = [r for r in requests if r.awaits("request")]
        if asked:
            with clock.part("judge"):
                verdicts = self.judge.score(
                    [r.messages for r in asked], [r.config.refusal_text for r in asked]
                )
            for request, verdict in zip(asked, verdicts, strict=True):
                request.weigh("request", verdict.request_harm)

    def _judge(self, requests: Sequence[Request], clock: Clock) -> dict[Request, list[Candidate]]:
        """Score the candidates of all requests in one call of the judge; not those given up."""
        finished = {r: [beam.candidate() for beam in r.beams] for r in requests}
        flat = [(r, beam.index) for r in requests for beam in r.contested]
        if not flat:
            return finished
        with clock.part("judge"):
            verdicts = self.judge.score(
                [r.messages for r, _ in flat], [finished[r][i].judged_text for r, i in flat]
            )
        for (request, i), verdict in zip(flat, verdicts, strict=True):
            finished[request][i] = dataclasses.replace(finished[request][i], verdict=verdict)
        return finished

    def _look(self, requests: Sequence[Request], clock: Clock) -> None:
        """Have the judge read what unfinished beams have become, and give some up."""
        due = [r for r in requests if r.looks_at(r.next_look)]
        for request, candidates in self._judge(due, clock).items():
            request.looks += 1
            still = [beam.index for beam in request.contested]
            request.keep(survivors(candidates, request.config, still))

    def _outcome(
        self, request: Request, candidates: Sequence[Candidate], timings: Timings
    ) -> Result | AlignBeamError:
        if isinstance(request.error, AlignBeamError):
            return request.error
        if request.error is not None:
            raise request.error
        try:
            selection = select(candidates, request.config)
        except AlignBeamError as error:
            return error
        return assemble(request, candidates, selection, timings)


def spent(request: Request, clock: Clock) -> Timings:
    """Return where the time of a request's batch went; its decoding may have had its own clock."""
    whole = clock.timings()
    if request.clock is None:
        return whole
    own = request.clock.timings()
    mine = own.target_ms + own.anchor_ms + own.mix_ms
    other = whole.total_ms - whole.judge_ms - mine
    return dataclasses.replace(
        whole,
        target_ms=own.target_ms,
        anchor_ms=own.anchor_ms,
        mix_ms=own.mix_ms,
        other_ms=max(0.0, other),
    )


def assemble(
    request: Request, candidates: Sequence[Candidate], selection: Selection, timings: Timings
) -> Result:
    """Return the result of a decoded request, given what was selected."""
    chosen = None if selection.chosen is None else candidates[selection.chosen]
    return Result(
        text=request.config.refusal_text if chosen is None else chosen.text,
        finish_reason="content_filter" if chosen is None else chosen.finish_reason,
        chosen=selection.chosen,
        reason=selection.reason,
        candidates=tuple(candidates),
        trace=tuple(sorted(request.trace, key=lambda step: (step.step, step.beam))),
        timings=timings,
        prompt_tokens=len(request.target_ids),
        completion_tokens=0 if chosen is None else len(chosen.token_ids),
        threshold=request.config.threshold,
        gates=() if request.gate is None else tuple(request.gate.readings),
        let_go=request.gate is not None and request.gate.open,
    )


def _or_raise(outcome: Result | AlignBeamError) -> Result:
    if isinstance(outcome, AlignBeamError):
        raise outcome
    return outcome


def _load_role(name: str, source: str | RoleConfig | AnyRole | None, best: int = 0) -> AnyRole:
    if isinstance(source, Role | RemoteRole):
        return source
    config = RoleConfig(model=source) if source is None or isinstance(source, str) else source
    return role_of(name, or_embedded(name, config), best)


def load_judge_of(source: str | JudgeConfig | None) -> FailClosed:
    """Load a judge with its model; None is the embedded one."""
    config = JudgeConfig(model=source) if source is None or isinstance(source, str) else source
    config = or_embedded("judge", config)
    role = role_of("judge", config)
    if isinstance(role, RemoteRole):
        config = config.replace(tokenizer=role.source)
    return load_judge(config, role)
