"""Id -> bytes: what each token adds to a text, read from the declared decoder."""

import functools
import json

import pytest
from hypothesis import given
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from vocab_strategies import (
    CAUSAL,
    SENTENCEPIECE,
    SP_STYLES,
    byte_level,
    real,
    sentencepiece,
    small_tokenizers,
    texts,
    vocab_folder,
    wrap,
)

from alignbeam.errors import TokenizerError
from alignbeam.vocab.end_tokens import end_token_ids
from alignbeam.vocab.plain_text import plain_encode
from alignbeam.vocab.token_bytes import token_bytes


def joined(table, ids):
    return b"".join(table[i] for i in ids)


# --- real vocabularies ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_token_bytes_match_the_file_for_every_id(name):
    """A second reading of tokenizer.json, sharing no line with the first."""
    tokenizer = real(name)
    file = json.loads((vocab_folder(name) / "tokenizer.json").read_text())
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stands_for = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in visible]
    stands_for |= {chr(256 + n): byte for n, byte in enumerate(hidden)}

    expected = {}
    for token, token_id in file["model"]["vocab"].items():
        if name in SENTENCEPIECE:
            one_byte = token.startswith("<0x") and len(token) == 6
            expected[token_id] = (
                bytes.fromhex(token[3:5]) if one_byte else token.replace("▁", " ").encode()
            )
        elif all(letter in stands_for for letter in token):
            expected[token_id] = bytes(stands_for[letter] for letter in token)
        else:
            expected[token_id] = token.encode()
    for token in file["added_tokens"]:
        expected[token["id"]] = None if token["special"] else token["content"].encode()

    assert token_bytes(tokenizer) == [expected.get(i) for i in range(len(tokenizer))]


@pytest.mark.parametrize("name", CAUSAL)
def test_token_bytes_give_the_text_back_on_the_vocabularys_own_test_texts(name):
    tokenizer = real(name)
    table = token_bytes(tokenizer)
    inputs = (vocab_folder(name) / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode()
    for text in inputs.split("\n__ggml_vocab_test__\n"):
        assert joined(table, plain_encode(tokenizer, text)) == text.encode()


@pytest.mark.parametrize("name", ["deepseek-llm", "deepseek-coder"])
def test_token_bytes_of_literal_added_tokens_are_their_text(name):
    tokenizer = real(name)
    table = token_bytes(tokenizer)
    for letter in "õ÷ÁýÀÿøúþüùöû":
        ids = plain_encode(tokenizer, letter)
        assert len(ids) == 1
        assert table[ids[0]] == letter.encode()
        assert tokenizer.decode(ids) != letter  # the trap: their own decode breaks on it


def test_token_bytes_refuses_wordpiece_by_name():
    with pytest.raises(TokenizerError, match=r"decoder \(WordPiece\)"):
        token_bytes(real("bert-bge"))


# --- small vocabularies ---------------------------------------------------------------------------


@given(tokenizer=small_tokenizers(), text=texts)
def test_plain_encode_spells_the_text_without_control_tokens(tokenizer, text):
    table = token_bytes(tokenizer)
    ids = plain_encode(tokenizer, text)
    assert None not in [table[i] for i in ids]
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is not None and "NFC" in str(normalizer):
        text = normalizer.normalize_str(text)
    assert joined(table, ids) == text.replace("▁", " ").encode() or (
        joined(table, ids) == text.encode()
    )


@pytest.mark.parametrize("style", SP_STYLES)
def test_plain_encode_adds_no_leading_space_in_any_sentencepiece_style(style):
    tokenizer = sentencepiece(style=style)
    table = token_bytes(tokenizer)
    for text in ("Sorry", " Sorry", "  Sorry", "!", "\nSure"):
        assert joined(table, plain_encode(tokenizer, text)) == text.encode()


def test_plain_encode_drops_the_byte_level_prefix_space():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert joined(token_bytes(tokenizer), plain_encode(tokenizer, "Sorry")) == b"Sorry"


def test_plain_encode_leaves_the_tokenizer_as_it_was():
    tokenizer = sentencepiece()
    before = tokenizer.backend_tokenizer.to_str()
    plain_encode(tokenizer, "a </s> b")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.eos_token_id in tokenizer.encode("a </s> b")


def test_plain_encode_sees_tokens_added_after_its_first_use():
    tokenizer = byte_level()
    plain_encode(tokenizer, "x")
    tokenizer.add_tokens(["zebra"])
    assert plain_encode(tokenizer, "zebra") == [len(tokenizer) - 1]


def test_plain_encode_keeps_markup_plain_even_if_its_token_is_not_special():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<|EOT|>", special=False)])
    ids = plain_encode(tokenizer, "a <|EOT|> b")
    assert len(tokenizer) - 1 not in ids
    assert joined(token_bytes(tokenizer), ids) == b"a <|EOT|> b"


def test_plain_encode_breaks_up_a_control_token_that_the_model_spells_itself():
    pieces = [("<unk>", -20.0), ("</s>", -1.0), *((chr(c), -9.0) for c in range(32, 127))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.decoder = decoders.Metaspace()
    tokenizer = wrap(backend, eos_token="</s>", unk_token="<unk>")
    assert backend.model.tokenize("</s>")[0].id == 1  # or this test tests nothing
    ids = plain_encode(tokenizer, "a</s>b")
    assert 1 not in ids
    assert "".join(backend.id_to_token(i) for i in ids) == "a</s>b"


def test_plain_encode_refuses_a_lone_surrogate():
    with pytest.raises(TokenizerError, match="lone surrogates"):
        plain_encode(byte_level(), "a\ud800")


def test_token_bytes_are_none_for_control_tokens_and_unknown():
    tokenizer = sentencepiece()
    table = token_bytes(tokenizer)
    assert [table[i] for i in range(3)] == [None, None, None]
    assert table[3 + 0x41] == b"A"


def test_token_bytes_keep_a_byte_level_token_outside_the_alphabet_as_it_stands():
    """As the declared decoder does."""
    tokenizer = byte_level()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    token_id = len(state["model"]["vocab"])
    state["model"]["vocab"]["日 本"] = token_id
    tampered = wrap(Tokenizer.from_str(json.dumps(state)))
    assert token_bytes(tampered)[token_id] == "日 本".encode()
    assert tampered.decode([token_id]) == "日 本"


# --- broken vocabularies --------------------------------------------------------------------------


@pytest.fixture
def edited(tmp_path):
    """A tokenizer loaded from a tampered file: in memory some faults would mend themselves."""

    def load(change):
        state = json.loads(byte_level().backend_tokenizer.to_str())
        change(state)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(state))
        return PreTrainedTokenizerFast(tokenizer_file=str(path))

    return load


def test_token_bytes_refuses_an_id_given_twice(edited):
    def change(state):
        state["model"]["vocab"]["twin"] = 300

    with pytest.raises(TokenizerError, match="id 300 is given to two tokens"):
        token_bytes(edited(change))


def test_token_bytes_refuses_a_vocabulary_full_of_holes(edited):
    def change(state):
        state["model"]["vocab"]["far"] = 2_000_000_000

    with pytest.raises(TokenizerError, match="ids up to 2000000000"):
        token_bytes(edited(change))


def test_token_bytes_leaves_a_small_hole_unused(edited):
    def change(state):
        state["model"]["vocab"]["far"] = len(state["model"]["vocab"]) + 5

    tokenizer = edited(change)
    table = token_bytes(tokenizer)
    assert table[-1] == b"far"
    assert table[-6:-1] == [None] * 5


def test_token_bytes_refuses_a_token_of_one_mebibyte(edited):
    def change(state):
        state["model"]["vocab"]["x" * 2**20] = len(state["model"]["vocab"])

    with pytest.raises(TokenizerError, match="1048576 bytes"):
        token_bytes(edited(change))


def test_token_bytes_refuses_an_empty_vocabulary():
    backend = Tokenizer(models.BPE())
    backend.decoder = decoders.ByteLevel()
    with pytest.raises(TokenizerError, match="no tokens"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.WordPiece()]),
    ],
)
def test_token_bytes_refuses_a_decoder_whose_bytes_are_not_known(decoder):
    tokenizer = sentencepiece()
    tokenizer.backend_tokenizer.decoder = decoder
    with pytest.raises(TokenizerError, match="decoder"):
        token_bytes(tokenizer)


def test_token_bytes_refuses_a_tokenizer_that_loses_text():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(TokenizerError, match="do not give"):
        token_bytes(tokenizer)


def test_token_bytes_refuses_merges_that_are_random():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.model.dropout = 0.1
    with pytest.raises(TokenizerError, match="dropout"):
        token_bytes(tokenizer)


def test_token_bytes_refuses_a_tokenizer_without_a_backend():
    with pytest.raises(TokenizerError, match="not backed"):
        token_bytes(object())


# --- end tokens -----------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


@functools.cache
def _chat_tokenizer():
    tokenizer = byte_level(end="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def test_end_token_ids_put_the_templates_end_of_turn_first():
    tokenizer = _chat_tokenizer()
    tokenizer.chat_template = CHATML
    eos, im_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert end_token_ids(tokenizer) == (im_end, eos)


def test_end_token_ids_put_eos_first_without_a_template():
    tokenizer = _chat_tokenizer()
    tokenizer.chat_template = None
    eos, im_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert end_token_ids(tokenizer) == (eos, im_end)


def test_end_token_ids_find_the_end_that_only_the_template_names():
    tokenizer = byte_level(end="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<bye>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} <bye>{% endfor %}"
    assert end_token_ids(tokenizer)[0] == tokenizer.convert_tokens_to_ids("<bye>")


@pytest.mark.parametrize(("given", "more"), [(None, ()), (7, (7,)), ([9, 7], (7, 9))])
def test_end_token_ids_include_the_generation_configs(given, more):
    tokenizer = _chat_tokenizer()
    tokenizer.chat_template = None
    config = GenerationConfig(eos_token_id=given)
    without = end_token_ids(tokenizer)
    assert end_token_ids(tokenizer, config) == (without[0], *sorted({*without[1:], *more}))


def test_end_token_ids_fall_back_with_a_warning_when_the_template_is_broken():
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.warns(RuntimeWarning, match="chat template"):
        assert end_token_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_end_token_ids_do_not_count_a_channels_end_as_the_answers():
    tokenizer = byte_level(end="<|return|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    assert end_token_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_end_token_ids_are_empty_when_nothing_names_an_end():
    assert end_token_ids(wrap(byte_level(end="<x>").backend_tokenizer)) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-bpe", (128001, 128009)),
        ("qwen2", (151643, 151645)),
        ("phi-3", (32007, 2, 32000)),
        ("llama-spm", (2,)),
        ("deepseek-coder", (32014, 32021)),
        ("falcon", (11,)),
        ("starcoder", (0,)),
    ],
)
def test_end_token_ids_of_real_vocabularies(name, expected):
    assert end_token_ids(real(name)) == expected
