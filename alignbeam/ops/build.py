"""Find the native extension: installed, in the cache, or built now; else say why there is none.

The life of a build: look in the cache, take the key's lock, look again, build in a temporary
folder, rename it into place. Two processes never clash and a killed build leaves nothing behind
that could be taken for a finished one. ``CMakeLists.txt`` is the only list of sources and flags.

Environment
-----------
ALIGNBEAM_CACHE : the cache folder, ``~/.cache/alignbeam`` unless set; builds go into ``native``.
    Nothing is loaded from one that another user owns or can write to.
ALIGNBEAM_DISABLE_JIT : ``1`` refuses to build.
ALIGNBEAM_EXTENSION : an extension to load in place of the installed one (sanitizer builds).
CXX, CUDACXX : the compilers, as CMake reads them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock

from alignbeam.cache_folder import cache_folder, make_cache_folder, untrusted
from alignbeam.errors import AlignBeamError, BackendUnavailable

_log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent.parent
_LOG_TAIL_LINES = 3


class _BuildRefused(AlignBeamError):
    """There will be no build here; the message is the reason."""


@dataclass(frozen=True)
class NativeModule:
    """The native module, or the reason why there is none."""

    module: Any
    origin: str
    reason: str | None = None

    def require(self) -> Any:
        """Return the module, or raise `BackendUnavailable` with the reason."""
        if self.reason is not None:
            raise BackendUnavailable(f"native extension: {self.reason}")
        return self.module


@functools.cache
def cpu_extension() -> NativeModule:
    """Return the extension with the CPU kernels, building it at first use where that is needed."""
    installed = _installed()
    if installed is not None:
        return _with_torch(installed, "installed")
    return _built(("-DALIGNBEAM_CUDA=OFF",), [])


@functools.cache
def gpu_extension(capability: tuple[int, int]) -> NativeModule:
    """Return an extension with CUDA kernels for a GPU of ``capability``, (9, 0) for example."""
    installed = _installed()
    if installed is not None and covers(installed.cuda_archs, capability):
        return _with_torch(installed, "installed")
    arch = f"{capability[0]}{capability[1]}"
    try:
        nvcc = _nvcc()
    except _BuildRefused as error:
        return NativeModule(None, "", str(error))
    options = ("-DALIGNBEAM_CUDA=ON", f"-DALIGNBEAM_CUDA_ARCHS={arch}-real")
    return _built((*options, f"-DCMAKE_CUDA_COMPILER={nvcc}"), [nvcc])


def covers(archs: str, capability: tuple[int, int]) -> bool:
    """Tell whether a build for ``archs`` ("80-real,120": CMake's, with commas) runs on a GPU.

    Machine code runs on its own major version from its minor version on; PTX, which an entry
    without ``-real`` also holds, on everything later.
    """
    for arch in archs.split(",") if archs else []:
        number, _, kind = arch.partition("-")
        major, minor = int(number) // 10, int(number) % 10
        if kind != "virtual" and major == capability[0] and minor <= capability[1]:
            return True
        if kind != "real" and (major, minor) <= capability:
            return True
    return False


def source_folder() -> Path | None:
    """Return the folder of ``CMakeLists.txt`` and ``csrc``: the wheel's copy, or the checkout."""
    for folder in (_PACKAGE / "_native", _PACKAGE.parent):
        if (folder / "CMakeLists.txt").is_file() and (folder / "csrc").is_dir():
            return folder
    return None


def source_key(folder: Path) -> str:
    """Return what CMake compiles into the extension as ``source_key``."""
    files = sorted((folder / "csrc").iterdir(), key=lambda path: path.name)
    digests = [_sha256(path.read_bytes()) for path in files if path.is_file()]
    return _sha256("".join([_sha256((folder / "CMakeLists.txt").read_bytes()), *digests]).encode())


def _installed() -> ModuleType | None:
    """Return the installed extension, unless it is older than the sources it lies beside."""
    chosen = os.environ.get("ALIGNBEAM_EXTENSION")
    if chosen:
        return _load(Path(chosen))
    spec = importlib.util.find_spec("alignbeam._C")
    if spec is None:
        return None
    from alignbeam import _C

    folder = source_folder()
    if folder is not None and _C.source_key != source_key(folder):
        _log.warning("the installed native extension is older than its sources: not used")
        return None
    return _C


def _built(options: tuple[str, ...], compilers: list[str]) -> NativeModule:
    """Return the extension configured with the CMake ``options``, from the cache or built now.

    ``compilers`` are those used besides the C++ compiler: their versions are part of the key.
    """
    try:
        folder = source_folder()
        if folder is None:
            raise _BuildRefused("its sources are not there; reinstall alignbeam")
        path = _cached_or_build(folder, options, compilers)
    except _BuildRefused as error:
        return NativeModule(None, "", str(error))
    except OSError as error:
        return NativeModule(
            None, "", f"the cache folder cannot be used ({error}); set ALIGNBEAM_CACHE"
        )
    return _with_torch(_load(path), f"built into {path.parent}")


def _with_torch(module: ModuleType, origin: str) -> NativeModule:
    """Return the extension once it knows how to read torch's tensors."""
    try:
        module.use_tensor_type(torch.Tensor)
    except (AttributeError, RuntimeError, ValueError) as error:
        reason = f"it cannot read the tensors of torch {torch.__version__} ({error})"
        return NativeModule(None, "", f"{reason}; pip install 'torch>=2.10'")
    return NativeModule(module, origin)


def _cached_or_build(folder: Path, options: tuple[str, ...], compilers: list[str]) -> Path:
    compiler = _compiler()
    parts = (
        source_key(folder),
        *(f"{path} {_version_of(path)}" for path in [compiler, *compilers]),
        sysconfig.get_config_var("EXT_SUFFIX"),
        *options,
    )
    key = _sha256("\n".join(parts).encode())[:20]
    cache = cache_folder("native")
    if cache is None:
        raise _BuildRefused("there is no home folder to build into; set ALIGNBEAM_CACHE")
    final = cache / key
    failed = cache / f"{key}.log"
    found = _trusted_in(final)
    if found is not None:
        return found
    if os.environ.get("ALIGNBEAM_DISABLE_JIT") == "1":
        raise _BuildRefused("not installed, and ALIGNBEAM_DISABLE_JIT=1 forbids to build it")
    tools = _tools()
    make_cache_folder(cache)
    with FileLock(cache / f"{key}.lock"):
        found = _trusted_in(final)
        if found is not None:
            return found
        if failed.exists():
            raise _BuildRefused(f"its build failed before; see {failed}, delete it to try again")
        _log.warning("building the native extension, once, into %s", final)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            built = _compile(folder, Path(work), options, tools, failed)
            ready = Path(work) / "ready"
            ready.mkdir(mode=0o700)
            shutil.copyfile(built, ready / built.name)
            (ready / built.name).chmod(0o600)
            ready.rename(final)
    found = _trusted_in(final)
    if found is None:
        raise _BuildRefused(f"the build in {final} was removed while it was being used")
    return found


def _compile(
    folder: Path, work: Path, options: tuple[str, ...], tools: list[str], failed: Path
) -> Path:
    cmake, ninja, pybind11_dir = tools
    build = work / "build"
    steps = (
        [
            cmake, "-S", str(folder), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-Dpybind11_DIR={pybind11_dir}",
            f"-DPython_EXECUTABLE={sys.executable}", "-DPYBIND11_FINDPYTHON=ON",
            "-DCMAKE_BUILD_TYPE=Release", *options,
        ],
        [cmake, "--build", str(build)],
    )  # fmt: skip
    output = ""
    for step in steps:
        result = subprocess.run(
            step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        output += result.stdout
        if result.returncode != 0:
            failed.write_text(output)
            tail = " / ".join(output.strip().splitlines()[-_LOG_TAIL_LINES:])
            raise _BuildRefused(f"its build failed: {tail}; the whole log is {failed}")
    built = _extension_in(build)
    if built is None:
        raise _BuildRefused("the build ended without an extension")
    return built


def _tools() -> list[str]:
    """Return the paths of cmake and ninja, and pybind11's CMake folder."""
    scripts = sysconfig.get_path("scripts")
    found = []
    for name in ("cmake", "ninja"):
        path = shutil.which(name, path=scripts) or shutil.which(name)
        if path is None:
            raise _BuildRefused(f"{name} was not found; pip install {name}")
        found.append(path)
    if importlib.util.find_spec("pybind11") is None:
        raise _BuildRefused("pybind11 was not found; pip install pybind11")
    import pybind11

    return [*found, pybind11.get_cmake_dir()]


def _compiler() -> str:
    named = os.environ.get("CXX") or "c++, g++ or clang++"
    missing = f"no C++ compiler was found ({named}); install one, such as g++"
    return _program("CXX", ["c++", "g++", "clang++"], missing)


def _nvcc() -> str:
    missing = (
        "the installed extension has no kernel for this GPU and nvcc was not found to build one; "
        "install the CUDA toolkit, or set CUDACXX"
    )
    return _program("CUDACXX", ["nvcc", "/usr/local/cuda/bin/nvcc"], missing)


def _program(variable: str, names: list[str], missing: str) -> str:
    """Return the path of the program that ``variable`` names, else of the first there is."""
    wanted = os.environ.get(variable)
    for name in [wanted] if wanted else names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise _BuildRefused(missing)


def _version_of(program: str) -> str:
    result = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return result.stdout


def _trusted_in(final: Path) -> Path | None:
    """Return the extension in the cache's folder ``final``; nobody else may have put it there."""
    found = _extension_in(final)
    levels = [final.parent.parent, final.parent]
    if fault := untrusted(*levels, *([final, found] if found is not None else [])):
        raise _BuildRefused(f"nothing is loaded from a cache that is not this user's: {fault}")
    return found


def _extension_in(folder: Path) -> Path | None:
    return next(folder.glob(f"_C*{sysconfig.get_config_var('EXT_SUFFIX')}"), None)


def _load(path: Path) -> ModuleType:
    # The last part of the name must be _C, after which the module's entry point is called.
    spec = importlib.util.spec_from_file_location(f"alignbeam._built.{path.parent.name}._C", path)
    if spec is None or spec.loader is None:
        raise BackendUnavailable(f"native extension: {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
