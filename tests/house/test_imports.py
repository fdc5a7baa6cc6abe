"""Imports point down only, as docs/architecture.md draws it; ``import alignbeam`` stays cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PACKAGE = REPO / "alignbeam"
PAGE = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
#: Lines of a file of the package or of csrc/: beyond that it holds more than one idea.
MOST_LINES = 400
#: Entry points and the generated extension belong to no storey.
NO_ROOM = {"__init__", "__main__", "_C"}


def _block(name: str) -> list[str]:
    found = re.search(rf"^```{name}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].splitlines()


STOREY = {
    room: height for height, line in enumerate(reversed(_block("storeys"))) for room in line.split()
}
NEVER = {
    (above, below)
    for line in _block("never")
    for above in line.split("->")[0].split()
    for below in line.split("->")[1].split()
}


def _imports(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """Modules that are imported when the code runs, with the names taken from them."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            yield str(node.module), [alias.name for alias in node.names]
        waiting += ast.iter_child_nodes(node)


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _rooms_of(module: str, names: list[str]) -> list[str]:
    parts = module.split(".")
    if parts[0] != "alignbeam":
        return []
    # "from alignbeam import AlignBeam" takes a public name; "import build" a room or a file.
    public = {"AlignBeam": "controller", "BeamConfig": "config"}
    return parts[1:2] or [public.get(name, name) for name in names]


SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
EDGES = {
    (_room(path), below)
    for path, tree in TREES.items()
    for module, names in _imports(tree)
    for below in _rooms_of(module, names)
    if _room(path) not in NO_ROOM and below not in NO_ROOM and below != _room(path)
}


def test_every_room_has_a_storey_and_every_storey_its_rooms():
    rooms = {_room(path) for path in SOURCES} - NO_ROOM
    assert rooms == set(STOREY)


@pytest.mark.parametrize(("above", "below"), sorted(EDGES))
def test_import_points_down(above, below):
    assert STOREY[above] > STOREY[below]
    assert (above, below) not in NEVER


def test_edges_were_found_at_all():
    assert ("cli", "controller") in EDGES
    assert ("decoding", "ops") in EDGES


def _importers(package: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path, tree in TREES.items()
        for module, _ in _imports(tree)
        if module.split(".")[0] == package
    }


def test_terminal_libraries_stay_in_their_rooms():
    assert {name.split("/")[0] for name in _importers("typer")} == {"cli"}
    allowed = {"terminal/explain.py", "demo/show.py"}
    assert {name for name in _importers("rich") if not name.startswith("cli/")} == allowed


def test_harness_packages_stay_in_their_room():
    for package in ("inspect_ai", "lm_eval"):
        assert {name.split("/")[0] for name in _importers(package)} == {"harness"}


def test_model_classes_are_imported_where_checkpoints_are_read_only():
    found = {
        str(path.relative_to(PACKAGE))
        for path, tree in TREES.items()
        for module, names in _imports(tree)
        if module.split(".")[0] == "transformers"
        and any(re.search(r"^AutoModel|For[A-Z]\w+LM$", name) for name in names)
    }
    assert found == {"models/loading.py", "models/gguf.py"}


def test_no_torch_header_in_native_sources():
    sources = [p for p in (REPO / "csrc").iterdir() if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert sources
    for path in sources:
        includes = re.findall(r"#include\s*[<\"]([^>\"]+)", path.read_text(encoding="utf-8"))
        assert not [name for name in includes if name.split("/")[0] in {"torch", "ATen", "c10"}]
        assert path.name == "bindings.cpp" or not [n for n in includes if "pybind11" in n]


def test_no_file_is_long():
    long = {
        str(path.relative_to(REPO)): count
        for path in (*SOURCES, *(REPO / "csrc").iterdir())
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long


def test_import_of_the_package_is_cheap():
    code = (
        "import sys, alignbeam; "
        "heavy = {'torch', 'transformers', 'triton', 'rich', 'typer', 'alignbeam._C'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPO
    )
    assert done.returncode == 0, done.stderr


def test_help_of_the_command_line_loads_no_model_library():
    code = (
        "import sys; sys.argv = ['alignbeam', '--help']\n"
        "from alignbeam.cli import main\n"
        "code = main()\n"
        "heavy = {'torch', 'transformers', 'triton'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPO
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "path", re.findall(r"`((?:alignbeam|csrc|tests|bench|examples)/[\w./]+)`", PAGE)
)
def test_page_names_files_that_exist(path):
    assert (REPO / path).exists()
