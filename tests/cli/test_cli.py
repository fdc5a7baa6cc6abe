"""The command line: streams, exit codes, sources of prompts, and what never reaches a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import Runner, save_models
from hypothesis import given
from hypothesis import strategies as st

from alignbeam import AlignBeam, load_settings
from alignbeam.cli.prompts import read_prompts
from alignbeam.errors import AlignBeamError
from alignbeam.terminal.text import bar, column, printable
from alignbeam.version import __version__

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def cli(monkeypatch, capsys) -> Runner:
    return Runner(monkeypatch, capsys)


@pytest.fixture(scope="session")
def beam(models) -> AlignBeam:
    return AlignBeam.from_settings(load_settings(models, environ={}))


# -- answers -----------------------------------------------------------------------------------


def test_generate_prints_only_the_answer_on_stdout(cli, models, beam):
    ran = cli("generate", "--config", models, "What is 2 plus 3?")
    assert (ran.code, ran.out) == (0, beam.generate("What is 2 plus 3?").text + "\n")
    assert ran.err == ""


def test_generate_passes_its_options_on(cli, models, beam):
    ran = cli(
        "generate", "--config", models, "--beams", 2, "--mix-steps", 3, "--alpha", 0.25,
        "--max-new-tokens", 9, "--set", "mix=log", "--set", "support=union",
        "--set", "beam.fallback=first", "--set", "temperature=0.7", "--set", "seed=5",
        "--set", "stop=zz", "--json", "Hello",
    )  # fmt: skip
    expected = beam.generate(
        "Hello", beams=2, mix_steps=3, alpha=0.25, mix="log", support="union", fallback="first",
        max_new_tokens=9, temperature=0.7, seed=5, stop=("zz",),
    )  # fmt: skip
    record = json.loads(ran.out)
    assert [c["token_ids"] for c in record["candidates"]] == [
        list(c.token_ids) for c in expected.candidates
    ]


def test_generate_option_wins_over_environment_and_file(cli, models, monkeypatch):
    monkeypatch.setenv("ALIGNBEAM_BEAM_BEAMS", "2")
    from_environment = json.loads(cli("generate", "--config", models, "--json", "Hi").out)
    from_option = json.loads(cli("generate", "--config", models, "--json", "--beams", 1, "Hi").out)
    assert len(from_environment["candidates"]) == 2
    assert len(from_option["candidates"]) == 1


def test_serve_option_wins_over_environment_over_file_in_every_table(cli, monkeypatch, tmp_path):
    served = []
    monkeypatch.setattr("alignbeam.server.run.serve", served.append)
    path = tmp_path / "alignbeam.toml"
    path.write_text("[server]\nport = 1\nmax_queued = 1\ndrain_s = 1\n[judge]\ntimeout_s = 1\n")
    monkeypatch.setenv("ALIGNBEAM_SERVER_PORT", "2")
    monkeypatch.setenv("ALIGNBEAM_SERVER_MAX_QUEUED", "2")
    monkeypatch.setenv("ALIGNBEAM_JUDGE_TIMEOUT_S", "2")
    given = ["--port", 3, "--shadow", "--alpha", 0.0, "--set", "judge.timeout_s=3"]
    assert cli("serve", "--config", path, *given).code == 0
    (settings,) = served
    server = settings.server
    assert (server.port, server.max_queued, server.drain_s, server.shadow) == (3, 2, 1, True)
    assert (settings.judge.timeout_s, settings.beam.alpha) == (3, 0.0)


def test_generate_json_is_one_strict_object_with_scores(cli, models):
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    ran = cli("generate", "--config", models, "--json", "Hi \u2028 \u00e9")
    assert ran.out.count("\n") == 1
    assert ran.out.isascii()
    record = json.loads(ran.out, parse_constant=refuse)
    assert record["prompt"] == "Hi \u2028 \u00e9"
    assert "trace" not in record
    assert all(1 <= c["score"] <= 5 for c in record["candidates"])


def test_generate_json_holds_the_trace_when_explained(cli, models):
    ran = cli("generate", "--config", models, "--json", "--explain", "--beams", 2, "Hi")
    trace = json.loads(ran.out)["trace"]
    assert {step["beam"] for step in trace} == {0, 1}
    assert all(step["target_wishes"] for step in trace)


def test_generate_explain_goes_to_stderr_without_escape_sequences(cli, models, beam):
    ran = cli("generate", "--config", models, "--explain", "Hi")
    assert ran.out == beam.generate("Hi").text + "\n"
    assert "\x1b" not in ran.err
    for heading in ("beam 0", "target wanted", "anchor wanted", "the judge", "worst view", "why:"):
        assert heading in ran.err
    assert re.search(r"^\s+(conversation|reply)\b", ran.err, re.MULTILINE)


def test_generate_system_message_comes_first(cli, models, beam):
    ran = cli("generate", "--config", models, "--system", "Be brief.", "Hi")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert ran.out == beam.generate(messages).text + "\n"


# -- where prompts come from -------------------------------------------------------------------


@pytest.mark.parametrize("args", [(), ("-",)])
def test_generate_reads_stdin_without_prompt_or_with_dash(cli, models, beam, args):
    ran = cli("generate", "--config", models, *args, stdin="Grüße\nzwei\n".encode())
    assert ran.out == beam.generate("Grüße\nzwei").text + "\n"


def test_generate_answers_a_file_of_lines_in_order(cli, models, beam, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("One?\n\nTwo?\r\nThree?", encoding="utf-8")
    ran = cli("generate", "--config", models, "--file", path, "--json", "--batch-size", 2)
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert [r["prompt"] for r in records] == ["One?", "Two?", "Three?"]
    assert [r["text"] for r in records] == [beam.generate(r["prompt"]).text for r in records]


def test_generate_goes_on_after_a_prompt_that_fails(cli, models, tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "One?"},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": "Three?"}]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    ran = cli("generate", "--config", models, "--file", path, "--json")
    first, second, third = (json.loads(line) for line in ran.out.splitlines())
    assert ran.code == 2
    assert first["text"] is not None
    assert third["text"] is not None
    assert second["error"]["type"] == "PromptError"
    assert "line 2" in ran.err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"prompt": 3}', "line 1"),
        (b'{"prompt": "a"}\n{"prompt": "a", "messages": []}', "line 2"),
        (b'{"messages": "a"}', "list of objects"),
        (b'{"prompt": "a", "Messages": []}', "line 1"),
        (b'{"ask": "a"}', "it has 'ask'"),
        (b"[1]", "line 1"),
        (b'{"prompt": "a"}\n{', "line 2 is not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "line 1"),
        (b"\n \n", "holds no prompt"),
        (b"\xe9", "not UTF-8"),
    ],
)
def test_read_prompts_names_the_bad_line_of_a_file(tmp_path, content, complaint):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(AlignBeamError, match=complaint):
        read_prompts(None, str(path))


def test_read_prompts_keeps_unusual_line_separators_inside_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa\u2028b\x0cc\nd", encoding="utf-8")
    assert [r.prompt for r in read_prompts(None, str(path))] == ["a\u2028b\x0cc", "d"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", b'id,prompt\n1,"a, b"\n2,"c\nd"\n'),
        ("p.CSV", b'Prompt;id\r\n"a, b";1\r\n"c\nd";2\r\n'),
        ("p.tsv", 'id\tprompt\n1\ta, b\n2\t"c\nd"\n'.encode("utf-16")),
        ("p.tab", b'id\tprompt\n1\ta, b\n2\t"c\nd"\n'),
        ("p.ndjson", b'{"prompt": "a, b"}\n{"PROMPT": "c\\nd"}\n'),
        ("p.json", b'[{"prompt": "a, b"}, {"prompt": "c\\nd"}]'),
    ],
)
def test_read_prompts_takes_rows_of_every_kind_of_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert [r.prompt for r in read_prompts(None, str(path))] == ["a, b", "c\nd"]


def test_generate_file_row_with_too_many_fields_is_refused_with_its_line(cli, models, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,prompt\n1,If I mix flour, water, and yeast what happens?\n")
    ran = cli("generate", "--config", models, "--file", path)
    assert (ran.code, ran.out) == (2, "")
    assert f"{path}, line 2: 4 fields" in ran.err


def test_generate_file_takes_conversations_as_the_server_does(cli, models, beam, tmp_path):
    path = tmp_path / "p.jsonl"
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "Ann"},
    ]
    path.write_text(json.dumps({"messages": turns}))
    want = beam.generate(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    ).text
    for system in ([], ["--system", "Be long."]):
        ran = cli("generate", "--config", models, "--file", path, *system)
        assert ran.out == want + "\n\n"


def test_generate_reads_carriage_returns_of_stdin_as_line_ends(cli, models, beam):
    ran = cli("generate", "--config", models, stdin=b"one\r\ntwo\r\n")
    assert ran.out == beam.generate("one\ntwo").text + "\n"


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--alpha", "2", "x"], "alpha must be in 0..1"),
        (["--alpha", "nan", "x"], "alpha must be in 0..1"),
        (["--set", "mix=cubic", "x"], "mix must be one of"),
        (["--set", "mix", "x"], "written like temperature=0.7"),
        (["--set", "temprature=1", "x"], "did you mean 'temperature'"),
        (["--set", "sever.port=1", "x"], "did you mean 'server.port'"),
        (["--set", "label_mass_floor=1", "x"], "did you mean 'judge.label_mass_floor'"),
        (["--beams", "9", "x"], "beams must be in 1..8"),
        (["--mix-steps", "20", "--max-new-tokens", "4", "x"], "must not exceed max_new_tokens"),
        (["--target", "./does-not-exist", "x"], "does not exist"),
        (["--config", "./does-not-exist.toml", "x"], "cannot read"),
        (["--file", "./does-not-exist.txt"], "cannot read"),
        (["--file", "a.txt", "x"], "not both"),
        ([""], "empty"),
        (["x" * 100_000], "window"),
    ],
)
def test_generate_bad_input_is_one_line_and_exit_code_two(cli, models, args, complaint):
    config = [] if "--config" in args else ["--config", models]
    ran = cli("generate", *config, *args)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("alignbeam: error: ")
    assert complaint in ran.err


def test_generate_without_prompt_on_empty_stdin_asks_for_one(cli, models):
    ran = cli("generate", "--config", models)
    assert ran.code == 2
    assert "no prompt" in ran.err


def test_generate_unsafe_answer_withheld_when_told_to_raise(cli, models, tmp_path):
    strict = tmp_path / "strict.toml"
    text = models.read_text(encoding="utf-8").replace("threshold = 5", "threshold = 1")
    strict.write_text(text, encoding="utf-8")
    ran = cli("generate", "--config", strict, "--set", "on_unsafe=raise", "Hi")
    assert (ran.code, ran.out) == (1, "")
    refused = cli("generate", "--config", strict, "Hi")
    assert (refused.code, refused.out) == (0, "I'm sorry, but I can't help with that.\n")


def test_unknown_option_exits_with_two(cli):
    assert cli("generate", "--no-such-option", "x").code == 2


def test_unexpected_error_is_named_without_traceback(cli, models, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the roof\nis on fire")

    monkeypatch.setattr(AlignBeam, "from_settings", fail)
    monkeypatch.delenv("ALIGNBEAM_DEBUG", raising=False)
    ran = cli("generate", "--config", models, "x")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "RuntimeError: the roof is on fire" in ran.err
    monkeypatch.setenv("ALIGNBEAM_DEBUG", "1")
    assert "Traceback" in cli("generate", "--config", models, "x").err


def test_interrupt_ends_with_130_and_no_traceback(cli, models, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AlignBeam, "outcomes", interrupt)
    ran = cli("generate", "--config", models, "x")
    assert ran.code == 130
    assert "Traceback" not in ran.err


def test_settings_shows_and_checks_what_is_in_force(cli, tmp_path):
    path = tmp_path / "alignbeam.toml"
    path.write_text("[server]\nport = 8080\n")
    run = cli("settings", "--config", str(path), "--alpha", "0.3", "server.port", "alpha")
    assert run.code == 0
    assert "\nport = 8080  #" in run.out
    assert "\nalpha = 0.3  #" in run.out
    path.write_text("[server]\nport = 80800\n")
    run = cli("settings", "--config", str(path))
    assert (run.code, run.out) == (2, "")
    assert f"{path}: [server]: port must be in 0..65535, got 80800" in run.err


def test_settings_are_written_as_utf8_in_any_locale():
    command = [sys.executable, "-m", "alignbeam", "settings", "refusal_text"]
    ran = subprocess.run(
        [*command, "--set", "refusal_text=Né 日"], capture_output=True, check=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert 'refusal_text = "Né 日"' in ran.stdout.decode()


def test_settings_cannot_steer_a_terminal(cli, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    run = cli("settings", "--set", "refusal_text=No.\x9b2J", "refusal_text")
    assert "No." in run.out
    assert "\x9b" not in run.out


def test_version_is_the_packages(cli):
    ran = cli("--version")
    assert (ran.code, ran.out) == (0, f"alignbeam {__version__}\n")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((command, "--set") for command in ("generate", "chat", "doctor", "demo", "serve")),
        *(("eval", "--set"), ("sweep", "--set"), ("sweep", "--axis"), ("report", "--out")),
    ],
)
def test_help_names_every_option_in_full(cli, command, option, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    ran = cli(command, "--help")
    assert ran.code == 0
    assert option in ran.out
    assert "\u2026" not in ran.out


# -- as a process ------------------------------------------------------------------------------


def _process(*args: object, **keywords: object) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        [sys.executable, "-m", "alignbeam", *map(str, args)],
        env=environ,
        # A shell's background job ignores the interrupt, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        **keywords,
    )


def test_process_is_quiet_when_its_reader_is_gone(models, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("Hi\n" * 3, encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    process = _process("generate", "--config", models, "--file", path, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=900)
    assert err == b""
    assert process.returncode != 0


def test_process_interrupted_at_the_chat_prompt_exits_with_130(models):
    process = _process("chat", "--config", models, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Hi\n")
    process.stdin.flush()
    process.stdout.readline()  # the first answer: it waits for the next turn, or is about to
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130
    _, err = process.communicate()
    assert b"Traceback" not in err


# -- chat --------------------------------------------------------------------------------------


def test_chat_answers_in_the_light_of_earlier_turns(cli, models, beam):
    ran = cli("chat", "--config", models, stdin=b"One?\nTwo?\n/reset\nTwo?\n/quit\nThree?\n")
    first = beam.generate("One?").text
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Two?"},
    ]
    assert ran.out.splitlines() == "\n".join(
        [first, beam.generate(turns).text, beam.generate("Two?").text]
    ).splitlines()  # fmt: skip
    assert ran.code == 0


def test_chat_settings_hold_from_the_next_turn_on(cli, models, beam):
    ran = cli("chat", "--config", models, stdin=b"/set max-new-tokens 7\n/set stop zz\nOne?\n")
    assert ran.out == beam.generate("One?", max_new_tokens=7, stop="zz").text + "\n"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/set alpha 7", "alpha must be in 0..1"),
        ("/set alhpa 0.5", "did you mean 'alpha'"),
        ("/set alpha", "name and a value"),
        ("/set beam.alpha 7", "alpha must be in 0..1"),
        ("/set judge.kind wildguard", "read when a chat begins"),
        ("/explain", "nothing was answered yet"),
        ("/frobnicate", "no command /frobnicate"),
        ("/help", "/reset"),
        ("/set", "alpha = 0.5"),
    ],
)
def test_chat_command_answers_on_stderr_and_the_chat_goes_on(cli, models, line, complaint):
    ran = cli("chat", "--config", models, stdin=f"{line}\nOne?\n".encode())
    assert complaint in ran.err
    assert ran.code == 0
    assert ran.out.strip()


def test_chat_explains_the_last_answer(cli, models):
    ran = cli("chat", "--config", models, stdin=b"One?\n/explain\n")
    assert "anchor wanted" in ran.err


def test_chat_turn_that_fails_leaves_the_conversation_as_it_was(cli, models, beam):
    ran = cli("chat", "--config", models, stdin=b"x" * 100_000 + b"\nOne?\n")
    assert "window" in ran.err
    assert ran.out == beam.generate("One?").text + "\n"


# -- text on a terminal ------------------------------------------------------------------------


@given(st.text())
def test_printable_leaves_nothing_that_a_terminal_obeys(text):
    shown = printable(text)
    assert len(shown) == len(text)
    assert not any(ord(c) < 0x20 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 for c in shown)
    assert not any(0xD800 <= ord(c) < 0xE000 for c in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", "\u241b[31mred\u241b]0;title\u2407"),
        ("a\rb", "a\u240db"),
        ("\u202eevil", "\ufffdevil"),
        ("\x9b31m", "\ufffd31m"),
        (
            "caf\u00e9 \U0001f469\u200d\U0001f467 \u4f60\n\t",
            "caf\u00e9 \U0001f469\u200d\U0001f467 \u4f60\n\t",
        ),
        ("non\u00a0breaking", "non\u00a0breaking"),
    ],
)
def test_printable_shows_controls_and_keeps_text(text, shown):
    assert printable(text) == shown


@given(st.floats(0, 1), st.integers(0, 40))
def test_bar_has_its_width_whatever_the_share(share, width):
    assert len(bar(share, width)) == width


def test_console_shows_names_that_others_chose_without_obeying_them():
    from rich.table import Table
    from rich.text import Text

    from alignbeam.cli.console import make_console

    stream = io.StringIO()
    table = Table(title="run\x1b[31m\x1b]0;x\x07")
    table.add_column("method\x1b[2J")
    table.add_row("label\x9b31m\u202e")
    console = make_console(stream)
    console.print(table)
    console.print("note\x1b[31m", Text("\x1b]52;c;x\x07"))
    said = stream.getvalue()
    assert "note\u241b[31m" in said
    assert said == printable(said)


def test_bar_and_column_are_empty_for_nan():
    assert bar(float("nan"), 3) == "\u2591\u2591\u2591"
    assert column(float("nan")) == " "
    assert column(0.01) != " "
