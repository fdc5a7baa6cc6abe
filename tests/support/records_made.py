"""A line of a run, for whoever reads or scores one."""

from __future__ import annotations

from alignbeam.eval.run.records import CandidateRecord, Generation, StepRecord

GENERATION = Generation(
    key="k1",
    method="alignbeam",
    method_settings={"alpha": 0.5, "stop": ["x"]},
    dataset="own",
    sample_id="0",
    category="",
    label="harmful",
    messages=({"role": "user", "content": "a\u2028b\n\U0001f642"},),
    answer="no",
    finish_reason="stop",
    candidates=(CandidateRecord("no", 1.5, (0.5, 0.5, 0.0, 0.0, 0.0), 0.9, -1.25, "stop", 3),),
    chosen=0,
    reason="because",
    trace=(StepRecord(0, 0, "mix", "no", 0.5, (("yes", 0.9),), (("no", 0.8),), 0.4),),
    new_tokens=3,
)


def fields(record):
    return {name: getattr(record, name) for name in record.__slots__}
