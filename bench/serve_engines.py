"""Three vLLM servers over a pair of real models and its judge, for ``bench_engines.py``.

``python bench/serve_engines.py CONFIG --python .venv-engines/bin/python`` takes a file of
``examples/real_models/fetch.py`` (``--swap``: its anchor is the target, and its target the anchor),
merges the judge's adapter into its weights, starts the servers, prints what ``bench_engines.py`` is
to be called with, and stops them when it is interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import threading
import tomllib
from pathlib import Path

from alignbeam.config import RoleConfig
from alignbeam.models.loading import checkpoint_of, load_tokenizer, load_weights

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from vllm_servers import VllmServer


def folder_of(role: str, told: dict[str, str], scratch: Path) -> str:
    """Return a folder that vLLM can load; an adapter is merged into a copy."""
    model = str(checkpoint_of(told["model"], name=role))
    if "adapter" not in told:
        return model
    merged = scratch / role
    config = RoleConfig(model=model, adapter=told["adapter"], dtype="float32")
    load_weights(role, config).save_pretrained(merged)
    load_tokenizer(model, name=role).save_pretrained(merged)
    for beside in Path(told["adapter"]).glob("*.toml"):
        shutil.copy(beside, merged)
    return str(merged)


def main() -> None:
    """Start them, say where they are, and wait."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--python", required=True, help="interpreter that has vLLM")
    parser.add_argument("--swap", action="store_true", help="exchange target and anchor")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the servers would stay
    told = tomllib.loads(given.config.read_text(encoding="utf-8"))
    if given.swap:
        told["target"], told["anchor"] = told["anchor"], told["target"]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        servers, folders = {}, {}
        for role in ("target", "anchor", "judge"):
            folder = folders[role] = folder_of(role, told[role], Path(scratch))
            name = Path(told[role]["model"]).name.removesuffix(".gguf")
            # The target does nearly all of the work, on whichever core is free.
            threads = 2 if role == "target" else 1
            log = Path(scratch) / f"{role}.log"
            server = VllmServer(given.python, folder, name, log, threads=threads)
            stack.callback(server.kill)
            servers[role] = server
        for server in servers.values():
            server.wait()
        urls = " ".join(server.url for server in servers.values())
        print(f"python bench/bench_engines.py {urls} --real {folders['judge']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
