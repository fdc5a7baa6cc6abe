"""The answer bench: a whole request, split by who spent the time, against its honest peers.

Peers run in the same process, interleaved, on the same prompts, engine, dtype and number of new
tokens (end tokens are switched off for that):

- ``plain``: the target alone, one beam, not judged;
- ``best_of_k``: K samples of the target, judged by the same judge, nothing mixed;
- ``alignbeam``: K beams, N mixed steps, judged.

Model sets: ``trio`` (the embedded models), ``medium`` (random weights, large enough that the
forwards dominate on a CPU), ``8b`` (Llama-3-8B target, Qwen2.5-3B anchor and judge, random
weights: latency does not depend on their values). Rows go to ``results/decode.jsonl``, of a GPU
to ``decode_cuda.jsonl``, each as soon as it is measured.

With ``--one-at-a-time`` a system has all its runs before the next begins: on a machine of one's own
that loses nothing, and whatever ends the process leaves the rows of those that were done.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import rows
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from alignbeam import AlignBeam, BeamConfig
from alignbeam.embedded import embedded_model
from alignbeam.judge import RubricJudge
from alignbeam.models.loading import load_tokenizer
from alignbeam.models.role import Role
from alignbeam.result import Timings

PROMPT = (
    "A shop sells pens at 3 coins each and books at 7 coins each. Ann buys 4 pens and 2 books. "
    "How many coins does she pay? Explain how you got there."
)


@dataclass(frozen=True)
class DecodeRow:
    """One system at one setting; quantiles over ``runs`` runs, milliseconds.

    The parts are those of the run of median length; they and ``outside_ms`` are its wall time.
    """

    system: str
    models: str
    device: str
    dtype: str
    threads: int
    beams: int
    mix_steps: int
    new_tokens: int
    prompt_tokens: int
    runs: int
    total_ms_p20: float
    total_ms_p50: float
    total_ms_p80: float
    target_ms: float
    anchor_ms: float
    mix_ms: float
    judge_ms: float
    other_ms: float
    outside_ms: float
    ratio_to_plain_p20: float
    ratio_to_plain_p50: float
    ratio_to_plain_p80: float
    ratio_to_best_of_k_p50: float


def random_role(
    name: str, config: LlamaConfig | Qwen2Config, device: str, dtype: torch.dtype
) -> Role:
    """Build a role: random weights of a real configuration, the trio's tokenizer of that role."""
    tokenizer = load_tokenizer(embedded_model(name))
    kind = LlamaForCausalLM if isinstance(config, LlamaConfig) else Qwen2ForCausalLM
    torch.manual_seed(0)
    with torch.device(device):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = kind(config)
        finally:
            torch.set_default_dtype(previous)
    # Columns beyond the tokenizer have no text; a model that chose them would never be shown to
    # the anchor. Zero loses against the best of thousands of random logits.
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer) :].zero_()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Role(name, model, tokenizer)


def model_set(name: str, device: str) -> AlignBeam:
    """Load or make the three models of a set."""
    if name == "trio":
        return AlignBeam.from_pretrained()
    small = {"max_position_embeddings": 8192, "tie_word_embeddings": False}
    if name == "medium":
        dtype = torch.float32
        target = LlamaConfig(
            vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
            num_attention_heads=12, num_key_value_heads=4, **small,
        )  # fmt: skip
        anchor = Qwen2Config(
            vocab_size=32_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
            num_attention_heads=8, num_key_value_heads=2, **small,
        )  # fmt: skip
    else:
        dtype = torch.bfloat16
        target = LlamaConfig(
            vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, **small,
        )  # fmt: skip
        anchor = Qwen2Config(
            vocab_size=151_936, hidden_size=2048, intermediate_size=11_008, num_hidden_layers=36,
            num_attention_heads=16, num_key_value_heads=2, **small,
        )  # fmt: skip
    judge = random_role("judge", anchor, device, dtype)
    return AlignBeam(
        random_role("target", target, device, dtype),
        random_role("anchor", anchor, device, dtype),
        # Random weights put no mass on digits; the floor would turn every verdict into an error.
        RubricJudge(judge, label_mass_floor=0.0),
    )


def without_end(beam: AlignBeam) -> AlignBeam:
    """Make every answer run to its full length: its end ids become one that is never chosen."""
    never = beam.target.width - 1
    beam.target.end_ids = (never,)
    head = beam.target.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[never] = 0
    return beam


def measure(
    beam: AlignBeam,
    models: str,
    beams: int,
    mix_steps: int,
    new_tokens: int,
    runs: int,
    *,
    end: float = float("inf"),
    one_at_a_time: bool = False,
) -> Iterator[DecodeRow]:
    """Time the three systems; the first run of each warms up and is not counted.

    No run begins that would not end by ``end`` (`time.monotonic`), as far as the one before tells.
    """
    common = {"max_new_tokens": new_tokens, "on_unsafe": "refuse", "wishes": 0}
    sampled = {**common, "mix_steps": 0, "beams": beams, "temperature": 1.0}
    mixed = {**common, "mix_steps": mix_steps, "beams": beams}

    def judged(settings: dict[str, object]) -> Callable[[], tuple[int, Timings | None]]:
        def call() -> tuple[int, Timings | None]:
            result = beam.generate(PROMPT, **settings)
            return max(len(c.token_ids) for c in result.candidates), result.timings

        return call

    def plain() -> tuple[int, Timings | None]:
        (alone,) = beam.alone("target", [PROMPT], max_new_tokens=new_tokens)
        return len(alone.token_ids), None

    systems = {"plain": plain, "best_of_k": judged(sampled), "alignbeam": judged(mixed)}
    walls: dict[str, list[float]] = {name: [] for name in systems}
    splits: dict[str, list[Timings]] = {name: [] for name in systems}
    if one_at_a_time:
        turns = [[name] * (runs + 1) for name in systems]
    else:
        turns = [[name for _ in range(runs + 1) for name in systems]]
    last_s = 0.0
    for turn in turns:
        warm = set()
        for name in tqdm(turn, desc=f"{models} K={beams}", unit="run", disable=None):
            if time.monotonic() + last_s > end:
                break
            if beam.target.device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            length, timings = systems[name]()
            last_s = time.perf_counter() - start
            if length != new_tokens:
                raise RuntimeError(f"{name}: {length} tokens instead of {new_tokens}")
            if name in warm:
                walls[name].append(last_s * 1e3)
                if timings is not None:
                    splits[name].append(timings)
            warm.add(name)
        for name in dict.fromkeys(turn):
            if walls[name]:
                yield row(name, beam, models, beams, mix_steps, new_tokens, walls, splits[name])
            if len(walls[name]) < runs:
                print(f"left out: {name}, K = {beams}: {runs - len(walls[name])} of {runs} runs")


def row(
    name: str,
    beam: AlignBeam,
    models: str,
    beams: int,
    mix_steps: int,
    new_tokens: int,
    walls: dict[str, list[float]],
    splits: list[Timings],
) -> DecodeRow:
    """Sum up one system. Ratios are taken run by run, between neighbours in time."""

    def ratios(to: str) -> list[float]:
        # Of another number of runs where time ran out.
        return [mine / other for mine, other in zip(walls[name], walls[to], strict=False)]

    # The split of one run, the one of median length: medians of parts would not add up.
    middle = walls[name].index(statistics.median_low(walls[name]))

    def part(field: str) -> float:
        return float(getattr(splits[middle], field)) if splits else 0.0

    total = quantiles(walls[name])
    to_plain = quantiles(ratios("plain"))
    judged = name != "plain"
    return DecodeRow(
        system=name,
        models=models,
        device=str(beam.target.device),
        dtype=str(beam.target.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        beams=beams if judged else 1,
        mix_steps=mix_steps if name == "alignbeam" else 0,
        new_tokens=new_tokens,
        prompt_tokens=len(beam.target.render(PROMPT)),
        runs=len(walls[name]),
        total_ms_p20=total[0],
        total_ms_p50=total[1],
        total_ms_p80=total[2],
        target_ms=part("target_ms") if judged else total[1],
        anchor_ms=part("anchor_ms"),
        mix_ms=part("mix_ms"),
        judge_ms=part("judge_ms"),
        other_ms=part("other_ms"),
        # What the call took around the measured batch; the split must cover all but 5 %.
        outside_ms=walls[name][middle] - part("total_ms") if judged else 0.0,
        ratio_to_plain_p20=to_plain[0],
        ratio_to_plain_p50=to_plain[1],
        ratio_to_plain_p80=to_plain[2],
        ratio_to_best_of_k_p50=quantiles(ratios("best_of_k"))[1],
    )


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """p20, p50, p80; NaN of nothing."""
    ordered = sorted(values) or [float("nan")]
    p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))
    return p20, p50, p80


def main() -> None:
    """Run the sets that suit the device and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=["trio", "medium", "8b"])
    parser.add_argument("--new-tokens", type=int, help="default: 128 on a CPU, 256 on a GPU")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--one-at-a-time", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for everything")
    parser.add_argument("--out", type=Path, help="the results file")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sets = args.models or (["trio", "8b"] if device == "cuda" else ["trio", "medium"])
    new_tokens = args.new_tokens or (256 if device == "cuda" else 128)
    name = "decode_cuda" if device == "cuda" else "decode"
    writer = rows.Writer(args.out or rows.RESULTS / f"{name}.jsonl")
    for models in sets:
        beam = without_end(model_set(models, device))
        print(f"{models}: loaded, {end - time.monotonic():.0f} s left", flush=True)
        for beams in (1, 3):
            for found in measure(
                beam, models, beams, BeamConfig().mix_steps, new_tokens, args.runs,
                end=end, one_at_a_time=args.one_at_a_time,
            ):  # fmt: skip
                writer.add(found)
                tell(found)
    print(f"wrote {writer.path}")


def tell(r: DecodeRow) -> None:
    split = sum((r.target_ms, r.anchor_ms, r.mix_ms, r.judge_ms, r.other_ms))
    covered = split / (split + r.outside_ms)
    print(
        f"{r.models:7} K={r.beams} {r.system:10} {r.total_ms_p50:9.1f} ms  "
        f"{r.ratio_to_plain_p50:5.2f}x plain  {r.ratio_to_best_of_k_p50:5.2f}x best-of-K  "
        f"target {r.target_ms:.0f} anchor {r.anchor_ms:.0f} mix {r.mix_ms:.1f} "
        f"judge {r.judge_ms:.0f} other {r.other_ms:.1f}  covered {covered:.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
