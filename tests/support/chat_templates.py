"""Chat templates in the styles of four families, for real vocabularies that ship without one."""

from __future__ import annotations

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Writes ``<s>`` itself: a tokenizer that adds its own would double it.
PHI_3 = (
    "<s>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ bos_token }}[INST] <<SYS>>\n{{ m['content'] }}\n<</SYS>>\n\n"
    "{% elif m['role'] == 'user' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] == 'assistant' %}"
    "{{ bos_token }}[INST] {% endif %}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)

#: Its end-of-turn token is an added one that its file does not call special.
DEEPSEEK_CODER = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n### Response:\n"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}\n<|EOT|>\n"
    "{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)

#: Folder of the vocabulary -> its family's template and begin-of-text token (None: it has none).
STYLES = {
    "llama-bpe": (LLAMA_3, "<|begin_of_text|>"),
    "qwen2": (CHATML, None),
    "phi-3": (PHI_3, "<s>"),
    "llama-spm": (LLAMA_2, "<s>"),
    "deepseek-coder": (DEEPSEEK_CODER, "<｜begin▁of▁sentence｜>"),
}
