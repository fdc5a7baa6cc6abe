"""One role = one causal LM with its tokenizer, prompt format and cached rows."""
