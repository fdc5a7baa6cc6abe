"""The files that people copy: they are read, and start engines that can play their roles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alignbeam.config import load_settings

FOLDER = Path(__file__).parents[2] / "examples" / "deploy" / "vllm"
SETTINGS = load_settings(FOLDER / "models.toml", environ={})


def commands(path):
    """What each container is started with, by its service's name."""
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    if "services" in documents[0]:
        return {name: s.get("command", []) for name, s in documents[0]["services"].items()}
    return {
        d["metadata"]["name"]: d["spec"]["template"]["spec"]["containers"][0]["args"]
        for d in documents
        if d["kind"] == "Deployment"
    }


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml"])
def test_engines_are_those_of_the_settings(name):
    found = commands(FOLDER / name)
    for role in ("target", "anchor", "judge"):
        asked = getattr(SETTINGS, role)
        command = found[role]
        assert asked.url == f"http://{role}:8000"
        assert command[command.index("--model") + 1] == asked.tokenizer
    anchor = found["anchor"]
    assert int(anchor[anchor.index("--max-logprobs") + 1]) > SETTINGS.beam.top_b
    assert found["gateway"] == ["--config", "/etc/alignbeam/models.toml"]


def test_kubernetes_sends_requests_by_ready_and_restarts_by_health():
    text = (FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")
    documents = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(text)}
    spec = documents["Deployment", "gateway"]["spec"]["template"]["spec"]
    (gateway,) = spec["containers"]
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/health"
    assert spec["terminationGracePeriodSeconds"] > SETTINGS.server.drain_s
    for role in ("target", "anchor", "judge", "gateway"):
        labels = documents["Deployment", role]["spec"]["template"]["metadata"]["labels"]
        assert documents["Service", role]["spec"]["selector"] == labels


def test_scaling_table_is_what_the_script_writes():
    check = [sys.executable, "bench/render_engines.py", "--check"]
    done = subprocess.run(check, cwd=FOLDER.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
