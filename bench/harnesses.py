"""The same questions through ``alignbeam eval``, inspect_ai and lm-eval, each by its own road.

Every harness gets the questions as plain user messages, the same settings and the models that its
own arguments load; each returns its answers in the order of the samples.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignbeam.eval.datasets import Sample, locate, take
from alignbeam.eval.suite import Suite, load_suite

#: Both harnesses tell of their use, or draw on the terminal, unless told otherwise.
QUIET = {"INSPECT_DISPLAY": "none", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def suite_of(limit: int, batch_size: int, name: str = "gsm8k") -> Suite:
    """The standard suite, narrowed to AlignBeam's answers to one set."""
    suite = load_suite("standard").only(["alignbeam"], [name]).limited(limit)
    return dataclasses.replace(suite, batch_size=batch_size)


def questions(suite: Suite) -> list[Sample]:
    """The samples that the suite draws."""
    (choice,) = suite.datasets
    there = choice.declared.samples(locate(choice.declared, fetch=False))
    return take(there, choice.limit, suite.seed)


def through_eval(suite: Suite) -> list[str]:
    """Answers in ``generations.jsonl`` of a run."""
    from alignbeam.eval.run.files import RunFiles
    from alignbeam.eval.run.run import generate, prepare

    with tempfile.TemporaryDirectory() as folder:
        failed = generate(prepare(suite), Path(folder))
        assert not failed, "a sample failed in alignbeam eval"
        return [str(g.answer) for g in RunFiles(folder).generations()]


def through_inspect(samples: Sequence[Sample], suite: Suite) -> list[str]:
    """Completions in the log of an ``inspect eval``; its samples ask concurrently."""
    os.environ.update(QUIET)
    from inspect_ai import Task
    from inspect_ai import eval as inspect_eval
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.dataset import Sample as InspectSample
    from inspect_ai.solver import generate

    import alignbeam.harness.inspect_provider  # noqa: F401  an older installation lacks the entry

    rows = [InspectSample(id=s.sample_id, input=s.prompt) for s in samples]
    with tempfile.TemporaryDirectory() as folder:
        (log,) = inspect_eval(
            Task(dataset=MemoryDataset(rows), solver=generate()),
            model="alignbeam/embedded",
            model_args={"batch_size": suite.batch_size, **suite.beam},
            log_dir=folder,
            log_realtime=False,
        )
        assert log.status == "success", log.error
        # Samples are read from the log's file, and only now.
        said = {str(s.id): s.output.completion for s in log.samples or []}
    return [said[s.sample_id] for s in samples]


def through_lm_eval(samples: Sequence[Sample], suite: Suite) -> list[str]:
    """Responses in the logged samples of lm-eval's ``simple_evaluate``."""
    os.environ.update(QUIET)
    from datasets import Dataset, DatasetDict
    from lm_eval import simple_evaluate

    from alignbeam.harness.lm_eval import register

    register()
    rows = [{"id": s.sample_id, "question": s.prompt, "answer": s.reference} for s in samples]
    length = suite.beam["max_new_tokens"]
    task: dict[str, Any] = {
        "task": "gsm8k_plain",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(rows)}),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": length},
        "metric_list": [{"metric": "exact_match"}],
    }
    found = simple_evaluate(
        model="alignbeam",
        model_args={"target": "embedded", **suite.beam},
        tasks=[task],
        batch_size=suite.batch_size,
        log_samples=True,
        bootstrap_iters=0,
    )
    said = {row["doc"]["id"]: row["resps"][0][0] for row in found["samples"]["gsm8k_plain"]}
    return [said[s.sample_id] for s in samples]


#: Harnesses that are compared with ``alignbeam eval``.
OTHERS = {"inspect_ai": through_inspect, "lm_eval": through_lm_eval}
