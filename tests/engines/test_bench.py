"""`bench/bench_engines.py` measures what it says, on engines of this process."""

from __future__ import annotations

import sys
from pathlib import Path

from judge_roles import random_role
from tiny_models import random_pair

from alignbeam import AlignBeam, BeamConfig
from alignbeam.judge import DEFAULT_RUBRIC, RubricJudge

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

import bench_engines

CONFIG = BeamConfig(mix_steps=3, beams=3, top_b=20, max_new_tokens=6, on_unsafe="safest")


def test_each_system_answers_and_its_traffic_is_its_own(served):
    target, anchor = (served(role)[1] for role in random_pair())
    judge = RubricJudge(served(random_role())[1], DEFAULT_RUBRIC, label_mass_floor=0.0)
    beam = AlignBeam(target, anchor, judge, CONFIG)
    found = {
        row.system: row
        for row in bench_engines.measure(beam, ["Hello!", "What is 2+2?", "Wie geht's?"], 2)
    }
    assert list(found) == list(bench_engines.SYSTEMS)
    assert {row.answers for row in found.values()} == {3}
    assert all(row.ms_p95 >= row.ms_p50 > 0 and row.target_kib > 0 for row in found.values())
    assert found["target"].judge_requests == found["best-of-3"].anchor_requests == 0
    assert found["best-of-3"].judge_requests == 1
    assert found["step-by-step"].trips >= found["alignbeam"].trips > found["best-of-3"].trips
