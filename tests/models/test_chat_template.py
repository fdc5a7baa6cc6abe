"""Chat templates as checkpoints ship them: nothing that was said is lost, and none can hang us."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_templates import CHATML, DEEPSEEK_CODER, LLAMA_2, LLAMA_3, PHI_3
from tiny_models import CHAT_TEMPLATE, byte_level_tokenizer, random_model, random_role
from transformers import AutoTokenizer

from alignbeam import Bridge, Role, RoleConfig
from alignbeam.config import JudgeConfig, Settings
from alignbeam.doctor import examine
from alignbeam.errors import ModelLoadError, PromptError
from alignbeam.models.render import GREETING, NEIGHBOURS, SYSTEM, Renderer
from alignbeam.vocab.end_tokens import end_token_ids
from alignbeam.vocab.vocabulary import Vocabulary

ROLES = ("target", "anchor", "judge")

# Templates --------------------------------------------------------------------------------------

#: As Llama-Guard-3 has it: contents are parts, and a string has none.
PARTS = (
    "{{ bos_token or '' }}{% for m in messages %}[{{ m['role'] }}]"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
    "[/{{ m['role'] }}]{% endfor %}"
)
#: As multimodal models have it: both forms are read.
EITHER = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: As Gemma 2: no system role, turns in strict order.
GEMMA_2 = (
    "{{ bos_token or '' }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
#: As Mistral v0.1: the same, by other words.
MISTRAL = (
    "{{ bos_token or '' }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
#: As Phi-3-mini's first: a system message is left out without a word.
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}<|assistant|>"
)
#: As Mistral v0.3: the system text goes before the last user turn.
SYSTEM_LAST = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}"
    "{% if m['role'] == 'user' %}[INST] {% if loop.last and system is defined %}{{ system }}\n\n"
    "{% endif %}{{ m['content'] }}[/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)

DROPS = {
    "last turn": "{% for m in messages[:-1] %}{{ m['content'] }}{% endfor %}?",
    "user": "{% for m in messages %}<|{{ m['role'] }}|>{% endfor %}",
    "first turn": "{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}?",
    "earlier turns": "{% for m in messages[-4:] %}{{ m['content'] }}{% endfor %}",
    "all but the last turn": "{{ messages[-1]['content'] }}",
    "ends of texts": "{% for m in messages %}{{ m['content'][:200] }}{% endfor %}",
    "beginnings of texts": "{% for m in messages %}{{ m['content'][-200:] }}{% endfor %}",
    "another key": "{% for m in messages %}{{ m['text'] }}{% endfor %}",
}
EARLIER = ("earlier turns", "all but the last turn")
LONG = "{% for i in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3
HANGS = {
    "loops": LONG,
    "width": "{{ '%1000000000d' % 1 }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for i in range(40) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ messages[0]['content'] }}",
    "list": "{{ [1] * 999999999999 }}",
    "power": "{{ 9 ** (9 ** 9 ** 9) }}{{ messages[0]['content'] }}",
    "padding": "{{ messages[0]['content'].center(2000000) }}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}{{ messages[0]['content'] }}",
    "answer": "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}"
    + LONG
    + "{% endif %}{% endfor %}",
}


def renderer(template, name="anchor", **settings):
    return Renderer(byte_level_tokenizer(template=template), name, **settings)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


# Contents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROLES)
def test_template_that_reads_parts_only_is_given_parts(name):
    made = renderer(PARTS, name)
    said = [system("Be kind."), user("Hello"), assistant("Yes?"), user("Bye")]
    want = "[system]Be kind.[/system][user]Hello[/user][assistant]Yes?[/assistant][user]Bye[/user]"
    assert made.text(said) == want
    assert made.text("Hi") == "[user]Hi[/user]"
    tokenizer = byte_level_tokenizer(template=PARTS)
    assert tokenizer.decode(made.ids("Hi")) == "[user]Hi[/user]"


def test_parts_are_not_given_to_a_template_that_reads_whole_contents():
    for template in (CHAT_TEMPLATE, EITHER):
        assert renderer(template).text("Hi") == "<|user|>Hi<|end|><|assistant|>"


def test_control_token_text_in_parts_stays_text():
    made, tokenizer = renderer(PARTS), byte_level_tokenizer(template=PARTS)
    assert tokenizer.all_special_ids
    for text in tokenizer.all_special_tokens:
        assert not set(made.ids(f"a {text} b")) & set(tokenizer.all_special_ids)


def test_end_of_turn_is_found_in_a_template_of_parts():
    tokenizer = byte_level_tokenizer(template=PARTS.replace("[/{{ m['role'] }}]", "<|stop3|>"))
    assert end_token_ids(tokenizer)[0] == tokenizer.convert_tokens_to_ids("<|stop3|>")


def test_end_of_turn_is_the_one_of_the_template_in_use():
    other = CHAT_TEMPLATE.replace("<|end|>", "<|stop3|>")
    tokenizer = byte_level_tokenizer()
    model = random_model("llama", len(tokenizer), end_ids=[tokenizer.eos_token_id])
    role = Role("target", model, tokenizer, chat_template=other)
    assert role.end_ids[0] == tokenizer.convert_tokens_to_ids("<|stop3|>")


@pytest.mark.parametrize("what", DROPS)
@pytest.mark.parametrize("name", ROLES)
def test_template_that_drops_text_is_refused(name, what):
    if name == "judge" and what in EARLIER:  # it is asked one question, as guards' templates are
        made = renderer(DROPS[what], name)
        assert "Hi" in made.text("Hi")
        with pytest.raises(PromptError, match="leaves out or changes text"):
            made.text([user("One"), assistant("A"), user("Two"), assistant("B"), user("Three")])
        return
    with pytest.raises(ModelLoadError, match=f"the {name}'s chat template leaves text .* out"):
        renderer(DROPS[what], name)


def test_template_that_drops_some_texts_only_refuses_these():
    """A load-time trial cannot know every word; a prompt without the user's is no prompt."""
    made = renderer(CHAT_TEMPLATE.replace("m['content']", "m['content'].split('#')[-1]"))
    assert "Hi" in made.text("Hi")
    for said in ("Do it. # Hi", [user("Do it. # Hi"), assistant("No."), user("Hi")]):
        with pytest.raises(PromptError, match="leaves out or changes text"):
            made.ids(said)


@pytest.mark.parametrize("template", [CHATML, DEEPSEEK_CODER, LLAMA_2, LLAMA_3, PHI_3, SYSTEM_LAST])
def test_usual_templates_need_no_help_and_read_as_transformers_reads_them(template):
    made = renderer(template, "target")
    assert (made.folded, made.refused, made.template.parts) == ((), (), False)
    said = [system("Be kind."), user(" Hello\n"), assistant("Yes?"), user("Bye {{ x }} 'é'")]
    for messages in (said, said[1:], said[-1:], [*said[1:2], *said[1:]]):
        tokenizer = byte_level_tokenizer(template=template)
        want = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert made.text(messages) == want


@pytest.mark.parametrize(
    "text",
    [
        "{% generation %}{% set x = 1 %}{{ messages[0].content }}{% endgeneration %}{{ x }}",
        "{{ messages[0] | tojson }} {{ messages | tojson(indent=2) }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}"
        "{{ messages[0]['content'] }}",
        "{% set ns = namespace(self=1, a='b') %}{{ ns.self }}{{ ns.a }}{{ messages[0].content }}",
        "{{ dict(a=1) }}{{ dict.fromkeys([1]) }}{{ messages[0].content }}{{ tools }}",
        "  {% if true %}\n  {{ messages[0].content }}\n  {% endif %}\n{{ strftime_now('%Y') }}",
        "{{ messages[0].content }}{{ enable_thinking }}{{ eos_token }}{{ missing }}",
    ],
)
def test_features_of_templates_are_those_of_transformers(text):
    template = text + CHAT_TEMPLATE
    made = renderer(template, "target", fold_turns=True)
    want = byte_level_tokenizer(template=template).apply_chat_template(
        [user("Hi")], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert made.text("Hi") == want


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__x = 1 %}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append(1) }}",
    ],
)
def test_templates_reach_nothing_but_what_they_are_given(text):
    with pytest.raises(ModelLoadError, match="refuses a lone question"):
        renderer(text + CHAT_TEMPLATE)


# Names ------------------------------------------------------------------------------------------

NAMED = {"default": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE.replace("<|end|>", "<|stop1|>")}


def as_list(named):
    return [{"name": name, "template": text} for name, text in named.items()]


def shown(template="<|end|>"):
    return f"<|user|>Hi{template}<|assistant|>"


@pytest.mark.parametrize("own", [NAMED, as_list(NAMED)], ids=["mapping", "list"])
def test_of_named_templates_the_default_counts_or_the_one_that_is_named(own):
    assert renderer(own).text("Hi") == shown()
    assert renderer(own, chat_template="tool_use").text("Hi") == shown("<|stop1|>")
    assert renderer(own, chat_template=CHAT_TEMPLATE).text("Hi") == shown()
    tokenizer = byte_level_tokenizer(template=own)
    assert end_token_ids(tokenizer) == end_token_ids(byte_level_tokenizer())


def test_name_that_no_template_has_is_refused_with_those_that_there_are():
    with pytest.raises(ModelLoadError, match=r"named 'tools'; it has: default, tool_use"):
        renderer(NAMED, "judge", chat_template="tools")
    with pytest.raises(ModelLoadError, match="named 'default'; it has: rag, tool_use"):
        renderer({"tool_use": CHAT_TEMPLATE, "rag": CHAT_TEMPLATE})
    for own in (CHAT_TEMPLATE, None):
        with pytest.raises(ModelLoadError, match=r"named 'tool_use'; it has: (default|none)"):
            renderer(own, chat_template="tool_use")


def saved(folder, own, how):
    """A model's folder with named templates, as one of three places has them."""
    role = random_role("target", "llama")
    role.model.save_pretrained(folder)
    tokenizer = role.tokenizer
    if how == "folder":
        tokenizer.chat_template = own
        tokenizer.save_pretrained(folder)
        assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()
        return folder
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    written = {**json.loads(path.read_text()), "chat_template": as_list(own)}
    path.write_text(json.dumps(written))
    return folder


@pytest.mark.parametrize("how", ["folder", "tokenizer_config.json"])
def test_folder_with_named_templates_is_served_and_examined(tmp_path, how):
    config = RoleConfig(model=str(saved(tmp_path, NAMED, how)), device="cpu")
    assert Role.from_config("target", config).render_text("Hi") == shown()
    named = config.replace(chat_template="tool_use")
    role = Role.from_config("anchor", named)
    assert role.render_text("Hi") == shown("<|stop1|>")
    assert role.chat_template == NAMED["tool_use"]
    assert role.end_ids[0] == role.tokenizer.convert_tokens_to_ids("<|stop1|>")
    report = examine(Settings(target=config, anchor=named), load=False)
    assert [side.has_template for side in report.sides] == [True, True]
    assert [side.end_tokens[0] for side in report.sides] == ["<|end|>", "<|stop1|>"]


# Turns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["anchor", "judge"])
@pytest.mark.parametrize("template", [GEMMA_2, MISTRAL, NO_SYSTEM])
def test_anchor_and_judge_fold_what_their_template_does_not_take(name, template):
    made = renderer(template, name)
    assert SYSTEM in made.folded
    assert made.text([system("Be kind."), user("Hi")]) == made.text("Be kind.\n\nHi")
    greeted = [system("Be kind."), assistant("Hello."), user("Hi"), user("there"), assistant("A")]
    said = made.text([*greeted, assistant("B"), user("C")])
    for text in ("Be kind.", "Hello.", "Hi", "there", "A", "B", "C"):
        assert text in said
    if template != NO_SYSTEM:
        assert set(made.folded) == {SYSTEM, NEIGHBOURS, GREETING}
        want = [user("Be kind.\n\nAssistant message: Hello.\n\nHi\n\nthere"), assistant("A\n\nB")]
        assert said == made.text([*want, user("C")])


@pytest.mark.parametrize("template", [GEMMA_2, MISTRAL])
def test_target_folds_only_where_it_is_told_to(template):
    made = renderer(template, "target")
    assert set(made.refused) == {SYSTEM, NEIGHBOURS, GREETING}
    for said in (
        [system("Be kind."), user("Hi")],
        [user("Hi"), user("there")],
        [assistant("Hello."), user("Hi")],
    ):
        with pytest.raises(PromptError, match=r"refuses .*target\.fold_turns = true"):
            made.ids(said)
        assert renderer(template, "target", fold_turns=True).ids(said)
        with pytest.raises(PromptError, match="refuses"):
            renderer(template, "anchor", fold_turns=False).ids(said)
    with pytest.raises(PromptError, match=r"target\.fold_turns"):
        renderer(template, "target", system_prompt="Be kind.").opening()


def test_target_whose_template_drops_the_system_message_is_refused_unless_told_to_fold():
    with pytest.raises(ModelLoadError, match=r"text of a system message; set target\.fold_turns"):
        renderer(NO_SYSTEM, "target")
    made = renderer(NO_SYSTEM, "target", fold_turns=True, system_prompt="Be kind.")
    assert made.text("Hi") == "<|user|>Be kind.\n\nHi<|end|><|assistant|>"


def test_template_that_takes_everything_is_given_everything():
    made = renderer(CHAT_TEMPLATE)
    said = [system("S"), assistant("A"), user("B"), user("C")]
    want = "<|system|>S<|end|><|assistant|>A<|end|><|user|>B<|end|><|user|>C<|end|><|assistant|>"
    assert (made.text(said), made.folded, made.refused) == (want, (), ())


def test_doctor_says_which_turns_are_folded_and_which_requests_will_fail(tmp_path):
    role = random_role("target", "llama", byte_level_tokenizer(template=GEMMA_2))
    role.model.save_pretrained(tmp_path)
    role.tokenizer.save_pretrained(tmp_path)
    config = RoleConfig(model=str(tmp_path), device="cpu")
    for load in (False, True):
        findings = examine(Settings(target=config, anchor=config), load=load).findings
        told = {f.topic: (f.level, f.text) for f in findings if "does not take" in f.text}
        assert told["target"][0] == "warn"
        assert "target.fold_turns = true" in told["target"][1]
        assert told["anchor"][0] == "note"
        assert all(SYSTEM in text and NEIGHBOURS in text for _, text in told.values())


# Doctor and loading -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["target", "anchor"])
def test_template_that_drops_answers_is_refused(name):
    with pytest.raises(ModelLoadError, match=r"leaves text .* out"):
        renderer(
            "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", name
        )


@pytest.mark.parametrize("name", ROLES)
def test_doctor_and_loading_refuse_a_template_that_drops_text(tmp_path, name):
    role = random_role("target", "llama")
    role.model.save_pretrained(tmp_path / "good")
    role.tokenizer.save_pretrained(tmp_path / "good")
    good = RoleConfig(model=str(tmp_path / "good"), device="cpu")
    bad = good.replace(chat_template=DROPS["last turn"])
    judge = JudgeConfig(model=good.model, device="cpu")
    given = {"target": good, "anchor": good, "judge": judge}
    given[name] = given[name].replace(chat_template=bad.chat_template)
    with pytest.raises(ModelLoadError, match=f"the {name}'s chat template"):
        examine(Settings(**given), load=False)
    with pytest.raises(ModelLoadError, match=f"the {name}'s chat template"):
        Role.from_config(name, given[name])


@pytest.mark.parametrize("what", HANGS)
def test_template_that_does_not_end_is_refused(what):
    with pytest.raises(ModelLoadError, match=r"judge's chat template (cannot be tried|refuses a)"):
        renderer(HANGS[what], "judge")


def test_tokenizers_own_template_that_does_not_end_is_not_run_for_its_end_tokens():
    """It is replaced by a setting, and must not be looked at all the same."""
    tokenizer = byte_level_tokenizer(template=LONG)
    model = random_model("llama", len(tokenizer), end_ids=[tokenizer.eos_token_id])
    role = Role("target", model, tokenizer, chat_template=CHAT_TEMPLATE)
    assert role.render_text("Hi") == shown()
    with pytest.warns(RuntimeWarning, match="cannot be tried"):
        assert end_token_ids(tokenizer)[0] == tokenizer.eos_token_id


def test_blank_that_the_tokenizer_puts_after_a_control_token_is_part_of_the_opening(
    vocabs_dir: Path,
) -> None:
    """Phi-3 answers ``<|assistant|>`` with ``▁Sorry``, though its template writes no blank."""
    tokenizer = AutoTokenizer.from_pretrained(vocabs_dir / "phi-3")
    asked = [{"role": "user", "content": "Hi"}]
    answered = [*asked, {"role": "assistant", "content": "Sorry"}]
    role = Renderer(tokenizer, "anchor")
    own = tokenizer.apply_chat_template(answered, return_dict=False)
    prompt = role.ids(asked)
    assert own[: len(prompt)] == prompt
    vocabulary = Vocabulary.of(tokenizer, opening=role.opening())
    assert role.opening() == b" "
    assert vocabulary.bytes_of(own[len(prompt)]) == role.opening() + b"Sorry"
    other = Vocabulary.of(AutoTokenizer.from_pretrained(vocabs_dir / "qwen2"))
    sorry = other.tokenizer.convert_tokens_to_ids("Sorry")
    bridge = Bridge.build(vocabulary, other, cache_dir=False)
    assert int(bridge.opening_table[own[len(prompt)]]) == sorry
    bridge = Bridge.build(other, vocabulary, cache_dir=False)
    assert int(bridge.opening_table[sorry]) == own[len(prompt)]
