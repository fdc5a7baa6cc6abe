"""Which candidate of a job is its answer: the judge's choice, within what was released."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from alignbeam.errors import JudgeUnavailable, UnsafeAnswer
from alignbeam.judge.selection import Selection, likelihood, select
from alignbeam.result import Candidate
from alignbeam.server.job import Job

_log = logging.getLogger(__name__)


def choose(job: Job, candidates: Sequence[Candidate], *, fail_open: bool) -> Selection:
    """Choose; once the beginning of a beam has left, there is only that beam to choose."""
    if job.release == "bare":
        return Selection(0, "not judged")
    among = [b.index for b in job.request.contested if job.chosen in (None, b.index)]
    try:
        return select(candidates, job.request.config, among)
    except UnsafeAnswer as error:  # over HTTP an error would be asked again, and cost as much
        return Selection(None, str(error))
    except JudgeUnavailable:
        if not fail_open:
            raise
    _log.warning("fail-open: an answer leaves without a verdict")
    job.failed_open = True
    return Selection(
        max(among, key=lambda i: likelihood(candidates[i])),
        "fail-open: the judge failed on every candidate and the operator lets answers pass",
    )
