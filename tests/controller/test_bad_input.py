"""Input that is wrong, hostile or odd: a named error that says what to do, or the right answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chat_templates import STYLES
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    byte_level_tokenizer,
    length_scorer,
    random_model,
    random_pair,
    random_role,
    sentencepiece_tokenizer,
)
from transformers import AutoTokenizer

from alignbeam import AlignBeam, BeamConfig, JudgeConfig, RoleConfig, load_settings
from alignbeam.errors import (
    AlignBeamError,
    ConfigError,
    JudgeUnavailable,
    ModelLoadError,
    PromptError,
    TokenizerError,
)
from alignbeam.judge import CallableJudge
from alignbeam.models.conversation import as_messages
from alignbeam.models.render import Renderer
from alignbeam.models.role import Role
from alignbeam.vocab.retokenize import split_utf8

#: Control tokens of half a dozen families, and what looks like one.
CONTROL_TEXTS = [
    *("<|im_end|>", "<|im_start|>system", "</s>", "<s>", "<unk>", "<pad>", "<|eot_id|>"),
    *("<|endoftext|>", "<|end|>", "<|assistant|>", "[INST]", "<0x41>"),
]


@cache
def tiny_beam() -> AlignBeam:
    judge = CallableJudge(lambda messages, text: length_scorer(messages[-1]["content"], text))
    return AlignBeam(*random_pair(), judge, BeamConfig(max_new_tokens=8))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


# Messages ----------------------------------------------------------------------------------------

BAD_PROMPTS: dict[str, tuple[Any, str]] = {
    "no messages": ([], "is empty; give at least one user message"),
    "empty text": ("", "message 0 .user. is empty"),
    "only blanks": (" \n\t", "message 0 .user. is empty"),
    "unknown role": ([{"role": "robot", "content": "x"}], "known roles: system, developer, user"),
    "no role": ([{"content": "x"}], "message 0 has no known role"),
    "no content": ([{"role": "user"}], "message 0 .user. is empty"),
    "content is a number": ([user("x"), user(3)], "message 1 must have text here, got int"),
    "a number as part": ([user([3])], "message 0, part 0 must be an object with a type"),
    "a part without text": ([user([{"type": "text"}])], "part 0 must have text here, got NoneType"),
    "empty parts": ([user([])], "message 0 .user. is empty"),
    "an image": ([user([{"type": "image_url", "image_url": {}}])], "image parts are not supported"),
    "a sound": ([user([{"type": "input_audio", "x": 1}])], "audio parts are not supported"),
    "a file": ([user([{"type": "file", "file": {}}])], "file parts are not supported"),
    "a tool's answer": ([user("x"), {"role": "tool", "content": "y"}], "tool messages are not"),
    "a tool call": (
        [user("x"), {"role": "assistant", "tool_calls": [{}]}, user("y")],
        "message 1 cannot be read: tool_calls is not supported",
    ),
    "unknown key": ([{**user("x"), "mood": "y"}], "unknown field 'mood'"),
    "unknown key of a part": (
        [user([{"type": "text", "text": "x", "mood": 1}])],
        "message 0, part 0 has an unknown field 'mood'",
    ),
    "only a system message": ([{"role": "system", "content": "x"}], "got 'system'"),
    "only empty messages": ([{"role": "assistant", "content": None}], "got 'nothing'"),
    "not a mapping": (["x"], "must be a mapping with role and content"),
    "a number": (7, "must be a string or a list of messages"),
    "bytes": (b"x", "must be a string or a list of messages"),
    "None": (None, "must be a string or a list of messages"),
    "answer last": ([user("x"), {"role": "assistant", "content": "y"}], "must be the user's"),
    "lone surrogate": ("a\ud800b", "lone surrogate at character 1"),
    "lone low surrogate": ([user("\udfff")], "lone surrogate at character 0"),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_prompt_is_refused_with_what_is_wrong(case: str) -> None:
    prompt, message = BAD_PROMPTS[case]
    with pytest.raises(PromptError, match=message):
        as_messages(prompt)
    with pytest.raises(PromptError, match=message):
        tiny_beam().generate(prompt)


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


#: What the openai client's ``message.model_dump()`` holds beside the text.
REPLAYED = {
    **{"refusal": None, "annotations": [], "audio": None, "function_call": None},
    **{"tool_calls": None, "reasoning_content": None, "name": "bot"},
}
READ: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "text": ("x", [user("x")]),
    "parts": (
        [user([{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}])],
        [user("ab")],
    ),
    "a replayed reply": (
        [user("x"), assistant("y", **REPLAYED), {**user("z"), "name": "Ann"}],
        [user("x"), assistant("y"), user("z")],
    ),
    "empty assistants": (
        [user("x"), assistant(None), user("y"), assistant(""), user("z"), assistant([])],
        [user("x"), user("y"), user("z")],
    ),
    "empty systems": ([system(""), system(None), user("x"), system(" ")], [user("x")]),
    "several systems": (
        [system("a"), {"role": "developer", "content": "b"}, system("c"), user("x")],
        [system("a\n\nb\n\nc"), user("x")],
    ),
    "a system before a turn": (
        [system("a"), user("x"), assistant("y"), system("b"), user("z")],
        [system("a"), user("x"), assistant("y"), user("System message: b\n\nz")],
    ),
    "a system behind a turn": (
        [user("x"), {"role": "developer", "content": "b"}, system("c")],
        [user("x\n\nSystem message: b\n\nSystem message: c")],
    ),
    "a system behind an answer": (
        [user("x"), system("b"), assistant("y"), system("c")],
        [user("x\n\nSystem message: b"), assistant("y"), user("System message: c")],
    ),
    "users in a row": ([user("x"), user("y")], [user("x"), user("y")]),
    "a refusal": (
        [user("x"), assistant(None, refusal="No."), user("y")],
        [user("x"), assistant("No."), user("y")],
    ),
    "a refusal as a part": (
        [user("x"), assistant([{"type": "refusal", "refusal": "No."}]), user("y")],
        [user("x"), assistant("No."), user("y")],
    ),
    "what gateways add": (
        [
            {**user("x"), "id": "m1"},
            assistant(
                [
                    {"type": "redacted_thinking", "data": "s"},
                    {"type": "output_text", "text": "y", "annotations": [], "logprobs": None},
                ],
                **{"parsed": None, "images": [], "thinking_blocks": None},
                **{"reasoning_details": [{"type": "t"}], "provider_specific_fields": None},
            ),
            user([{"type": "input_text", "text": "z", "citations": None}]),
        ],
        [user("x"), assistant("y"), user("z")],
    ),
    "thinking": (
        [
            user("x"),
            assistant([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "y"}]),
            user("z"),
        ],
        [user("x"), assistant("y"), user("z")],
    ),
}


@pytest.mark.parametrize("case", READ)
def test_conversation_is_read_as_clients_replay_it(case: str) -> None:
    given, want = READ[case]
    messages = as_messages(given)
    assert messages == want
    assert as_messages(messages) == messages


def test_late_system_message_is_refused_by_no_strict_template() -> None:
    strict = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['content'] }}]{% endfor %}"
    )
    conversation = [user("x"), assistant("y"), system("b"), user("z"), system("c")]
    text = Renderer(byte_level_tokenizer(), "target", chat_template=strict).text(conversation)
    assert text == "[x][y][System message: b\n\nz\n\nSystem message: c]"


def test_bad_prompt_of_a_batch_does_not_take_the_others_along() -> None:
    beam = tiny_beam()
    results = list(beam.outcomes(["Hi", "", "Ho"]))
    assert isinstance(results[1], PromptError)
    for prompt, result in zip(("Hi", "Ho"), (results[0], results[2]), strict=True):
        alone = beam.generate(prompt)
        assert not isinstance(result, AlignBeamError)
        assert [c.token_ids for c in result.candidates] == [c.token_ids for c in alone.candidates]


def test_empty_batch_gives_no_results() -> None:
    assert tiny_beam().generate_batch([]) == []


# Settings ----------------------------------------------------------------------------------------

BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"alpha": -0.1}, r"alpha must be in 0..1, got -0.1"),
    ({"alpha": 1.01}, r"alpha must be in 0..1, got 1.01"),
    ({"alpha": math.nan}, r"alpha must be in 0..1, got nan"),
    ({"alpha": math.inf}, r"alpha must be in 0..1, got inf"),
    ({"alpha": "0.5"}, r"alpha must be a number, got '0.5'"),
    ({"alpha": True}, r"alpha must be a number, got True"),
    ({"beams": 0}, r"beams must be in 1..8, got 0"),
    ({"beams": 9}, r"beams must be in 1..8, got 9"),
    ({"beams": 2.0}, r"beams must be an integer, got 2.0"),
    ({"mix_steps": -1}, r"mix_steps must be at least 0, got -1"),
    ({"mix_steps": 9}, r"mix_steps \(9\) must not exceed max_new_tokens \(8\); lower the one"),
    ({"top_b": 0}, r"top_b must be in 1..256, got 0"),
    ({"max_new_tokens": 0}, r"max_new_tokens must be at least 1, got 0"),
    ({"mix": "geometric"}, r"mix must be one of linear, log, got 'geometric'"),
    ({"support": "both"}, r"support must be one of anchor, union"),
    ({"fallback": "Drop"}, r"fallback must be one of drop, first, exact, prefix, got 'Drop'"),
    ({"on_unsafe": "ignore"}, r"on_unsafe must be one of refuse, safest, raise"),
    ({"threshold": 0.5}, r"threshold must be in 1..5, got 0.5"),
    ({"threshold": math.nan}, r"threshold must be in 1..5, got nan"),
    ({"temperature": -1}, r"temperature must be in 0..100, got -1"),
    ({"top_p": 0}, r"top_p must be above 0; for greedy decoding set temperature = 0"),
    ({"seed": -1}, r"seed must be in 0\.\."),
    ({"stop": ("",)}, r"stop must hold non-empty strings, got ''"),
    ({"stop": (7,)}, r"stop must hold non-empty strings, got 7"),
    ({"beamz": 3}, r"unknown setting 'beamz'; did you mean 'beams'\?"),
    ({"num_return_sequences": 3}, r"unknown setting 'num_return_sequences'; known: .*beams"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS, ids=lambda v: str(v)[:40])
def test_setting_is_refused_by_name_and_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_beam().generate("Hi", **changes)
    with pytest.raises(ConfigError, match=message):
        BeamConfig(max_new_tokens=8).replace(**changes)


def test_more_beams_than_the_vocabulary_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    beam = tiny_beam()
    monkeypatch.setattr(beam.target, "width", 2)
    with pytest.raises(ConfigError, match=r"beams must be in 1\.\.2 \(the vocabulary\), got 3"):
        beam.generate("Hi")


def test_unknown_keys_and_tables_of_a_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[beam]\nalfa = 0.3\n")
    with pytest.raises(
        ConfigError, match=r"\[beam\]: unknown setting 'alfa'; did you mean 'alpha'"
    ):
        load_settings(file, environ={})
    file.write_text("[beams]\nalpha = 0.3\n")
    with pytest.raises(ConfigError, match=r"unknown table \[beams\]; did you mean 'beam'"):
        load_settings(file, environ={})
    file.write_bytes(b"[beam]\nalpha = \xff\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(file, environ={})
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.toml: No such file"):
        load_settings(tmp_path / "nowhere.toml", environ={})


def test_overrides_of_the_wrong_number_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 overrides for 2 prompts; give one for each"):
        tiny_beam().generate_batch(["a", "b"], [{}])


# Windows -----------------------------------------------------------------------------------------


def test_each_role_refuses_a_prompt_longer_than_its_own_window() -> None:
    judge = CallableJudge(lambda messages, text: 1.0)
    long = "word " * 40
    short = {"max_position_embeddings": 64}
    wide = {"max_position_embeddings": 512}
    for name, target_window, anchor_window in (("target", short, wide), ("anchor", wide, short)):
        target = random_role("target", "llama", **target_window)
        anchor = random_role("anchor", "qwen2", sentencepiece_tokenizer(), **anchor_window)
        beam = AlignBeam(target, anchor, judge, BeamConfig(max_new_tokens=8))
        with pytest.raises(PromptError, match=rf"the {name}, whose window of 64 .* shorten"):
            beam.generate(long)
        assert beam.generate("Hi").candidates


def test_answer_ends_with_the_targets_window() -> None:
    target = random_role("target", "llama", max_position_embeddings=40)
    anchor = random_role("anchor", "qwen2", sentencepiece_tokenizer())
    beam = AlignBeam(target, anchor, CallableJudge(lambda messages, text: 1.0))
    prompt = target.render("Hi")
    result = beam.generate("Hi", max_new_tokens=256)
    for candidate in result.candidates:
        assert len(prompt) + len(candidate.token_ids) <= 40
        assert candidate.finish_reason == ("length" if len(candidate.token_ids) == 40 - len(prompt)
                                           else "stop")  # fmt: skip


def test_request_longer_than_the_judges_window_lets_no_text_leave(trio: AlignBeam) -> None:
    role = trio.judge.role
    window = role.window
    role.window = 96
    try:
        with pytest.raises(JudgeUnavailable, match="window"):
            trio.generate("Tom has 3 apples. " * 20, max_new_tokens=8)
    finally:
        role.window = window


# Models and tokenizers that cannot be served -----------------------------------------------------


def folder_of(role: Role, path: Path) -> Path:
    role.model.save_pretrained(path)
    role.tokenizer.save_pretrained(path)
    return path


@cache
def tiny_role() -> Role:
    return random_role("target", "llama", padding=4)


def load(folder: Path) -> Role:
    return Role.from_config("target", RoleConfig(model=str(folder), device="cpu"))


@pytest.mark.parametrize("where", ["/nonexistent/model", "./nonexistent", "~/nonexistent-model"])
def test_missing_model_folder_is_named(where: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"target's folder {where} does not exist"):
        AlignBeam.from_pretrained(target=where)
    with pytest.raises(ModelLoadError, match=r"judge's folder .* does not exist"):
        Role.from_config("judge", JudgeConfig(model=where))


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="holds no tokenizer"):
        load(tmp_path)
    tiny_role().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="cannot load the target"):
        load(tmp_path)


def test_role_without_a_model_says_which_setting_names_it() -> None:
    with pytest.raises(ModelLoadError, match=r"no model is named .* set target\.model"):
        Role.from_config("target", RoleConfig())


def no_decoder(data: dict[str, Any]) -> None:
    data["decoder"] = None


def unknown_decoder(data: dict[str, Any]) -> None:
    data["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}


def duplicate_id(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    vocab["A"] = vocab["B"]


def id_beyond_the_head(data: dict[str, Any]) -> None:
    data["model"]["vocab"]["zzz"] = 100_000


def id_just_beyond_the_head(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    vocab["zzz"] = tiny_role().width


def mebibyte_token(data: dict[str, Any]) -> None:
    data["model"]["vocab"]["a" * 2**20] = tiny_role().width - 1


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no decoder": (no_decoder, "decoder"),
    "decoder of another kind": (unknown_decoder, "decoder"),
    "two tokens with one id": (duplicate_id, "id"),
    "a token of 1 MiB": (mebibyte_token, "has 1048576 bytes, the limit is 65536"),
    "an id far beyond the head": (id_beyond_the_head, "ids up to 100000; the file is damaged"),
    "an id just beyond the head": (id_just_beyond_the_head, "belong"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_tokenizer_file_is_refused_when_loaded(case: str, tmp_path: Path) -> None:
    tamper, message = TAMPERED[case]
    file = folder_of(tiny_role(), tmp_path) / "tokenizer.json"
    data = json.loads(file.read_text())
    tamper(data)
    file.write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path)


def test_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = byte_level_tokenizer(template=None, end="<|fin|>")
    tokenizer.eos_token = None
    model = random_model("llama", len(tokenizer))
    model.generation_config.eos_token_id = None
    with pytest.raises(TokenizerError, match=r"no end token.*set eos_token_id"):
        Role("target", model, tokenizer)


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"{", b"", b'{"version": "1.0"}'])
def test_unreadable_tokenizer_file_is_refused(damage: bytes, tmp_path: Path) -> None:
    file = folder_of(tiny_role(), tmp_path) / "tokenizer.json"
    file.write_bytes(damage)
    with pytest.raises((ModelLoadError, TokenizerError), match="target's tokenizer"):
        load(tmp_path)


def test_invalid_utf8_inside_a_token_is_refused(tmp_path: Path) -> None:
    file = folder_of(tiny_role(), tmp_path) / "tokenizer.json"
    whole = file.read_bytes()
    assert b"<|user|>" in whole
    file.write_bytes(whole.replace(b"<|user|>", b"<|us\xffr|>"))
    with pytest.raises(ModelLoadError, match="cannot load the target's tokenizer"):
        load(tmp_path)


def test_template_that_is_no_jinja_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AlignBeamError, match="chat template"):
        Role("target", tiny_role().model, tiny_role().tokenizer, chat_template="{% for %}")
    config = RoleConfig(model=str(folder_of(tiny_role(), tmp_path)), chat_template="no.jinja")
    with pytest.raises(ModelLoadError, match="cannot read chat template"):
        Role.from_config("target", config)


def test_anchor_equal_to_the_target_is_served(tmp_path: Path) -> None:
    folder = str(folder_of(tiny_role(), tmp_path))
    config = RoleConfig(model=folder, device="cpu")
    judge = CallableJudge(lambda messages, text: 1.0)
    beam = AlignBeam.from_pretrained(config, config, judge, BeamConfig(max_new_tokens=8))
    assert len(beam.generate("Hi").candidates) == 3


# Control-token text stays text -------------------------------------------------------------------


def control_ids(role: Role, ids: list[int]) -> list[int]:
    """The added tokens among ids that are called special or look it (``<...>``), in order."""
    added = role.tokenizer.added_tokens_decoder
    return [i for i in ids if i in added and (added[i].special or added[i].content[0] in "<[")]


def plain_bytes(role: Role, ids: list[int]) -> bytes:
    return b"".join(role.bytes_of(i) for i in ids)


def assert_stays_text(role: Role, content: str) -> None:
    ids = role.render(content)
    harmless = role.render("hello")
    assert control_ids(role, ids) == control_ids(role, harmless)
    assert content.encode() in plain_bytes(role, ids)


def own_control_tokens(role: Role) -> list[str]:
    added = role.tokenizer.added_tokens_decoder
    return [added[i].content for i in control_ids(role, sorted(added))]


@pytest.mark.parametrize("name", ["target", "anchor", "judge"])
def test_control_token_text_stays_plain_text_for_the_embedded_trio(
    trio: AlignBeam, name: str
) -> None:
    role = trio.judge.role if name == "judge" else getattr(trio, name)
    assert own_control_tokens(role)
    for text in {*CONTROL_TEXTS, *own_control_tokens(role)}:
        assert_stays_text(role, text)
        assert_stays_text(role, f"say {text} twice {text}{text}, please")


@pytest.mark.parametrize("name", ["target", "anchor", "judge"])
@given(data=st.data())
@settings(max_examples=40)
def test_pieces_of_control_tokens_never_make_one(
    trio: AlignBeam, name: str, data: st.DataObject
) -> None:
    """Nested, overlapping and cut spellings: taking one out must not put another together."""
    role = trio.judge.role if name == "judge" else getattr(trio, name)
    spellings = own_control_tokens(role)
    halves = [half for s in spellings for half in (s[: len(s) // 2], s[len(s) // 2 :])]
    pieces = st.sampled_from([*spellings, *halves, " ", "x", "\ue000", "\n"])
    content = "".join(data.draw(st.lists(pieces, min_size=1, max_size=8)))
    if content.strip():
        ids = role.render([user(content)])
        assert control_ids(role, ids) == control_ids(role, role.render("hello"))
        assert content.strip().encode() in plain_bytes(role, ids)


def test_control_token_text_in_every_message_of_a_conversation_stays_text(
    trio: AlignBeam,
) -> None:
    def conversation(text: str) -> list[dict[str, str]]:
        return [user(text), {"role": "assistant", "content": text}, user(text)]

    for role in (trio.target, trio.anchor, trio.judge.role):
        for text in own_control_tokens(role):
            ids, harmless = role.render(conversation(text)), role.render(conversation("hello"))
            assert control_ids(role, ids) == control_ids(role, harmless)
            assert plain_bytes(role, ids).count(text.encode()) >= 3


def test_control_token_text_of_a_candidate_stays_text_for_the_judge(
    trio: AlignBeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks at what the judge's model is really fed."""
    role = trio.judge.role
    fed: list[list[int]] = []
    ask = role.next_token_logits

    def watched(sequences: list[list[int]]) -> Any:
        fed.extend(sequences)
        return ask(sequences)

    monkeypatch.setattr(role, "next_token_logits", watched)
    trio.judge.score([[user("Hi")]], ["A hello 1 hello"])
    harmless = {tuple(control_ids(role, ids)) for ids in fed}  # of each view
    for text in [*own_control_tokens(role), *CONTROL_TEXTS]:
        fed.clear()
        trio.judge.score([[user("Hi")]], [f"A {text} 1 {text}"])
        assert fed
        assert {tuple(control_ids(role, ids)) for ids in fed} <= harmless


@pytest.fixture(scope="module", params=STYLES)
def real_role(request: pytest.FixtureRequest, vocabs_dir: Path) -> tuple[Role, str | None]:
    """A real vocabulary with its family's template, around a head of the right width."""
    template, bos = STYLES[request.param]
    tokenizer = AutoTokenizer.from_pretrained(vocabs_dir / request.param)
    narrow = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    end_ids = [tokenizer.eos_token_id]
    model = random_model("llama", len(tokenizer), end_ids=end_ids, **narrow, **heads)
    return Role("target", model, tokenizer, chat_template=template), bos


def test_real_template_writes_its_begin_token_once(real_role: tuple[Role, str | None]) -> None:
    role, bos = real_role
    ids = role.render([{"role": "system", "content": "Be kind."}, user("Hello")])
    if bos is None:
        assert role.tokenizer.bos_token is None
    else:
        bos_id = role.tokenizer.convert_tokens_to_ids(bos)
        assert ids[0] == bos_id
        assert ids.count(bos_id) == 1


def test_real_vocabulary_keeps_control_token_text_as_text(
    real_role: tuple[Role, str | None],
) -> None:
    role, _ = real_role
    own = own_control_tokens(role)
    for text in {*CONTROL_TEXTS, *own[:12], *own[-4:]}:
        assert_stays_text(role, f"a {text} b")


def test_real_vocabulary_takes_odd_text_as_it_is(real_role: tuple[Role, str | None]) -> None:
    role, _ = real_role
    for text in ("NUL \x00 inside", "👩‍👩‍👧‍👦🇫🇷", "\ufffd \ufeff", "ü你ا", "a\u200bb"):
        assert text.encode() in plain_bytes(role, role.render(text))


# Odd but right -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "🙂🙃👍🏽", "\ufffd", "\u200b", "x", "é"])
def test_odd_text_is_answered(trio: AlignBeam, text: str) -> None:
    for role in (trio.target, trio.anchor, trio.judge.role):
        assert text.encode() in plain_bytes(role, role.render(f"Say {text}."))
    result = trio.generate(f"Say {text}.", max_new_tokens=8)
    assert all(c.verdict is not None and c.verdict.error is None for c in result.candidates)


def test_hundred_thousand_characters_of_one_letter_are_refused_by_the_window(
    trio: AlignBeam,
) -> None:
    """Would not return for hours if any step were quadratic in the text's length."""
    with pytest.raises(PromptError, match=r"the target, whose window .* shorten"):
        trio.generate("a" * 100_000)
    for role in (trio.target, trio.anchor, trio.judge.role):
        assert plain_bytes(role, role.render("a" * 100_000)).count(b"a" * 100_000) == 1


def test_hundred_thousand_characters_are_rendered_by_real_vocabularies(
    real_role: tuple[Role, str | None],
) -> None:
    role, _ = real_role
    for letter in ("a", " a", "你"):
        text = "x" + letter * (100_000 // len(letter))
        assert text.encode() in plain_bytes(role, role.render(text))


def test_hundred_thousand_control_tokens_stay_text(trio: AlignBeam) -> None:
    spelling = own_control_tokens(trio.target)[0]
    assert_stays_text(trio.target, spelling * (100_000 // len(spelling)))


def test_answer_cut_inside_a_character_is_text_with_a_replacement_mark() -> None:
    """Random byte tokens cut characters all the time; the length must cut some for good."""
    beam = tiny_beam()
    prompts = [f"Say {i} 🙂" for i in range(12)]
    results = beam.generate_batch(prompts, {"max_new_tokens": 7, "mix_steps": 5})
    cut = 0
    for candidate in (c for r in results for c in r.candidates):
        raw = b"".join(beam.target.bytes_of(i) for i in candidate.token_ids)
        assert candidate.text == raw.decode(errors="replace")
        candidate.text.encode()
        if split_utf8(raw)[1] and candidate.finish_reason == "length":
            cut += 1
            assert candidate.text.endswith("\ufffd")
    assert cut > 0
