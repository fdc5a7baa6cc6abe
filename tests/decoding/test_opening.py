"""What the target spells its opening with on its own: nothing of the answer, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import byte_level_tokenizer, length_scorer, random_role, sentencepiece_tokenizer
from transformers import AutoTokenizer

from alignbeam import AlignBeam, BeamConfig, Bridge, Role
from alignbeam.judge import CallableJudge
from alignbeam.vocab.vocabulary import Vocabulary


def _saying(role: Role, *token_ids: int) -> Role:
    """Make a role want nothing so much as these tokens, the first one most."""
    head = role.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
    with torch.no_grad():
        for n, token_id in enumerate(token_ids):
            head.bias[token_id] = 60.0 - 10.0 * n
    return role


@pytest.mark.parametrize("fallback", ["drop", "exact", "first", "prefix"])
@pytest.mark.parametrize("same_vocabulary", [True, False])
def test_answer_that_does_not_merge_with_the_targets_opening_is_said(
    fallback: str, same_vocabulary: bool
) -> None:
    target = random_role("target", "llama", sentencepiece_tokenizer())
    assert target.opening == b" "
    blank = target.tokenizer.convert_tokens_to_ids("▁")
    seven = target.tokenizer.convert_tokens_to_ids("7")
    if same_vocabulary:
        anchor = random_role("anchor", "qwen2", sentencepiece_tokenizer(), seed=1)
        says = (seven,)  # and the blank before it, which is the opening
    else:
        anchor = random_role("anchor", "qwen2", byte_level_tokenizer(), seed=1)
        says = (anchor.vocabulary.text_bytes.index(b"7"),)
    judge = CallableJudge(lambda messages, text: length_scorer(messages[-1]["content"], text))
    beam = AlignBeam(target, _saying(anchor, *says), judge, BeamConfig(threshold=5.0))
    result = beam.generate(
        "2 + 5 = ?", fallback=fallback, alpha=0.9, mix_steps=2, max_new_tokens=2, beams=1
    )
    assert result.candidates[0].token_ids == (blank, seven)
    assert result.candidates[0].text == "7"


@pytest.mark.parametrize("said", ["7", "对", "🙂", "ا"])
def test_first_words_without_a_blank_go_to_llama_2s_own_blank(vocabs_dir: Path, said: str) -> None:
    anchor = Vocabulary.of(AutoTokenizer.from_pretrained(vocabs_dir / "qwen2"))
    target = Vocabulary.of(AutoTokenizer.from_pretrained(vocabs_dir / "llama-spm"), opening=b" ")
    (column,) = anchor.tokenizer.encode(said, add_special_tokens=False)[:1]
    blank = target.tokenizer.convert_tokens_to_ids("▁")
    for fallback in ("drop", "exact", "first", "prefix"):
        bridge = Bridge.build(anchor, target, fallback, cache_dir=False)
        assert int(bridge.opening_table[column]) == blank
