"""What the pages promise: links, commands, switches, settings and names in them exist."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.main import get_command

from alignbeam.cli.app import app
from alignbeam.config import Settings, from_assignments, from_flat, load_settings
from alignbeam.errors import ConfigError
from alignbeam.eval.datasets import DATASETS
from alignbeam.eval.methods import METHODS
from alignbeam.eval.run import records
from alignbeam.eval.suite import SUITES, load_suite

REPO = Path(__file__).parents[2]
PAGES = [
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md", "alignbeam/demo/MODEL_CARD.md")),
    *sorted((REPO / "docs").glob("*.md")),
    *sorted((REPO / "examples").rglob("README.md")),
]
# Switches of programs that are not ours: lm-eval's and the engines'.
FOREIGN = {
    *("--apply_chat_template", "--model", "--model_args"),
    *("--max-logprobs", "--logprobs-mode", "--block-size", "--distributed-executor-backend"),
    *("--stream-interval", "--enable-deterministic-inference", "--parallel", "--no-cache-prompt"),
    *("--max-num-queued-reqs", "--max-num-queued-tokens", "--max-queued-requests"),
    "--cache-type-k",
}
SETTINGS = get_type_hints(Settings)
CLI = get_command(app)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _blocks(text: str) -> list[tuple[str, str]]:
    # One pass over all blocks, so that a closing fence is never taken for an opening one.
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _found(pattern: str, where=lambda text: _prose(text)) -> list:
    """One parameter a page and match; the same match twice on a page once."""
    return [
        pytest.param(path, match, id=f"{path.relative_to(REPO)}:{match}")
        for path in PAGES
        for match in dict.fromkeys(re.findall(pattern, where(_text(path)), re.MULTILINE))
    ]


def _shell(text: str) -> str:
    return "\n".join(body for name, body in _blocks(text) if name in ("", "sh", "bash"))


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", _prose(text), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", head.lower()).strip() for head in heads)
    return {head.replace(" ", "-") for head in kept}


def _first_column(page: str, head: str) -> list[str]:
    """The names in code in the first column of the tables that begin with ``head``."""
    tables = re.findall(
        rf"^\| {re.escape(head)} \|.*\n\|[ :|-]+\n((?:\|.*\n)+)", _text(REPO / page), re.MULTILINE
    )
    cells = [line.split("|")[1] for table in tables for line in table.splitlines()]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize(("page", "link"), _found(r"\]\((?!https?:)([^)\s]+)\)"))
def test_link_leads_somewhere(page, link):
    file, _, anchor = link.partition("#")
    target = (page.parent / file).resolve() if file else page
    assert target.exists()
    if anchor:
        assert anchor in _anchors(_text(target))


# In a block a command ends where a comment, a pipe or a redirection begins.
_IN_BLOCK = r"^alignbeam ((?:[^#>|\n\\]|\\\n)+)"
_IN_PROSE = r"`alignbeam ([^`]+)`"


@pytest.mark.parametrize(("page", "line"), [*_found(_IN_BLOCK, where=_shell), *_found(_IN_PROSE)])
def test_command_is_taken_by_the_command_line(page, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.replace("\\\n", " "))
    context = CLI.context_class(CLI)
    while words and (below := getattr(context.command, "commands", None)):
        assert words[0] in below
        context = below[words[0]].context_class(below[words[0]], parent=context)
        words.pop(0)
    if words:  # else the command is talked of, not called
        context.command.make_context(context.command.name, words, parent=context.parent)


# NAME=VALUE and TABLE.KEY=VALUE stand for any.
@pytest.mark.parametrize(
    ("page", "given"), _found(r"--set ((?!NAME|TABLE)[^\s`]+)", where=lambda text: text)
)
def test_setting_that_is_given_is_taken(page, given):
    load_settings(None, from_flat(from_assignments([given])), environ={})


def _options(command) -> set[str]:
    own = {name for parameter in command.params for name in parameter.opts}
    return own.union(*map(_options, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize(("page", "switch"), _found(r"`[^`\n]*?(--[a-z][\w-]+)[^`\n]*`"))
def test_switch_exists(page, switch):
    scripts = [*REPO.glob("bench/*.py"), *REPO.glob("examples/**/*.py")]
    assert switch in FOREIGN | _options(CLI) or any(
        f'"{switch}"' in _text(script) for script in scripts
    )


@pytest.mark.parametrize(("page", "table"), _found(r"`\[(\w+(?:\.\w+)?)\]`(?! \|)"))
def test_settings_table_exists(page, table, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(f"[{table}]\n")
    try:
        load_settings(file, environ={})
    except ConfigError:
        load_suite(_suite(tmp_path, file))


def _suite(folder: Path, tables: Path) -> str:
    base = _text(REPO / "alignbeam" / "eval" / "suites" / "quick.toml")
    made = folder / "suite.toml"
    made.write_text(f"{base}\n{_text(tables)}", encoding="utf-8")
    return str(made)


def test_toml_of_a_suite_is_read(tmp_path):
    bodies = [body for page in PAGES for name, body in _blocks(_text(page)) if name == "toml"]
    assert bodies
    for body in bodies:
        (tmp_path / "tables.toml").write_text(body, encoding="utf-8")
        assert load_suite(_suite(tmp_path, tmp_path / "tables.toml"))


@pytest.mark.parametrize(("page", "setting"), _found(rf"`((?:{'|'.join(SETTINGS)})\.(?!py\b)\w+)`"))
def test_setting_of_a_table_exists(page, setting):
    from_flat({setting: None})


@pytest.mark.parametrize("name", _first_column("docs/tuning.md", "setting"))
def test_setting_of_the_tuning_guide_exists(name):
    from_flat({name: None})


@pytest.mark.parametrize(
    ("page", "variable"), _found(r"\b(ALIGNBEAM_(?!TABLE_KEY)[A-Z_]+)", where=lambda text: text)
)
def test_environment_variable_is_read_somewhere(page, variable):
    sources = [REPO / "setup.py", REPO / "CMakeLists.txt", REPO / "tests" / "conftest.py"]
    sources += [*REPO.glob("alignbeam/**/*.py"), *REPO.glob("csrc/*.cpp")]
    setting = re.fullmatch(r"ALIGNBEAM_([A-Z]+)_(\w+)", variable)
    if setting and setting[1].lower() in SETTINGS:
        from_flat({f"{setting[1]}.{setting[2]}".lower(): None})
        return
    assert any(variable in _text(source) for source in sources)


@pytest.mark.parametrize(
    ("page", "name"), _found(r"\b(alignbeam(?:\.[A-Za-z_]\w*)+)", where=lambda text: text)
)
def test_name_in_the_package_exists(page, name):
    if name.endswith((".toml", ".service")):
        return
    _resolve(name)


def _resolve(dotted: str) -> None:
    """Import as much of a dotted name as is a module, and look the rest up in it."""
    parts = dotted.split(".")
    for at in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:at]))
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith(parts[0]):
                pytest.skip(f"{error.name} is not installed")
            continue
        for part in parts[at:]:
            found = getattr(found, part)
        return
    raise AssertionError(dotted)


SNIPPETS = [
    pytest.param(body, id=f"{path.relative_to(REPO)}:{number}")
    for path in PAGES
    for number, (language, body) in enumerate(_blocks(_text(path)))
    if language == "python"
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_python_compiles_and_imports_names_that_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _resolve(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                _resolve(f"{node.module}.{alias.name}")


def test_lists_of_methods_suites_and_data_sets_are_whole():
    assert _first_column("docs/methods.md", "name") == list(METHODS)
    assert _first_column("docs/evaluation.md", "suite") == list(SUITES)
    rows = re.findall(
        r"^\| (?:harmful|benign|utility) \|(.*)\|$", _text(REPO / "docs/evaluation.md"), re.M
    )
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(DATASETS)


def test_data_sets_that_are_downloaded_and_those_put_there_by_hand_are_told_apart():
    shipped = {"word_problems.jsonl"}
    by_hand = {d.file for d in DATASETS.values() if not d.url} - shipped
    assert set(_first_column("docs/evaluation.md", "file by hand")) == by_hand
    downloaded = re.search(r"^Downloaded: (.+?)\.", _text(REPO / "docs/evaluation.md"), re.M | re.S)
    assert set(re.findall(r"`([^`]+)`", downloaded[1])) == {
        name for name, d in DATASETS.items() if d.url
    }


def test_files_of_a_run_have_the_keys_that_are_described():
    text = _text(REPO / "docs" / "evaluation.md")
    keys = _first_column("docs/evaluation.md", "key")
    digest = json.loads(_text(REPO / "bench" / "results" / "eval_standard.json"))
    record = {field.name for field in dataclasses.fields(records.Generation)}
    assert set(keys) == set(digest["manifest"]) | record
    for made, head in ((records.Score, "scores"), (records.Time, "times")):
        section = text.split(f"### {head}.jsonl")[1].split("###")[0]
        for field in dataclasses.fields(made):
            assert f"`{'class' if field.name == 'cls' else field.name}`" in section
