"""Bench rows: where a figure was measured, with what, and how it is kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"
_REPO = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and with what a row was measured.

    ``load`` is how many processes wanted a core in the last minute, this one among them.
    """

    cpu: str
    cores: int
    gpu: str
    driver: str
    cuda: str
    python: str
    torch: str
    transformers: str
    triton: str
    commit: str
    utc: str
    load: float


@cache
def machine() -> Machine:
    """Describe this machine, these versions and this commit (``+`` where files are changed)."""
    has_gpu = torch.cuda.is_available()
    return Machine(
        cpu=_cpu_name(),
        cores=torch.multiprocessing.cpu_count(),
        gpu=torch.cuda.get_device_name() if has_gpu else "",
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if has_gpu
        else "",
        cuda=torch.version.cuda or "",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        triton=_triton_version(),
        commit=_commit(),
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
        load=round(os.getloadavg()[0], 1),
    )


class Writer:
    """A file of rows (replaced whole) that holds each as soon as it is added.

    What was added stays there when the process is killed the moment after.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def add(self, row: Any) -> None:
        """Append a dataclass row with its machine."""
        self._file.write(json.dumps({**asdict(row), "machine": asdict(machine())}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def write(name: str, rows: list[Any]) -> Path:
    """Write dataclass rows, each with its machine, to ``results/<name>.jsonl`` (replaced whole)."""
    writer = Writer(RESULTS / f"{name}.jsonl")
    for row in rows:
        writer.add(row)
    writer.close()
    return writer.path


def read(name: str) -> list[dict[str, Any]]:
    """Read the rows of ``results/<name>.jsonl``; none where there is no such file."""
    return read_file(RESULTS / f"{name}.jsonl")


def read_file(path: Path) -> list[dict[str, Any]]:
    """Read a file of rows; none where there is none. A last line that was cut off is left out."""
    if not path.is_file():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole if line]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def _commit() -> str:
    told = os.environ.get("BENCH_COMMIT")  # where the files were copied to without their history
    if told:
        return told
    commit = _output("git", "-C", str(_REPO), "rev-parse", "--short=10", "HEAD")
    dirty = _output("git", "-C", str(_REPO), "status", "--porcelain", "--", "alignbeam", "csrc")
    return f"{commit}+" if commit and dirty else commit


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
