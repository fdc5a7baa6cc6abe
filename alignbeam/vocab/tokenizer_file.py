"""What a fast tokenizer declares about itself, and a digest bound to all of it."""

from __future__ import annotations

import hashlib
import json
import weakref
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from alignbeam.errors import TokenizerError

# Every 16th token string ties an object to the file it says it came from; 2 ms a vocabulary.
_PROBE_STRIDE = 16


def backend_of(tokenizer: Any) -> Tokenizer:
    """Return the ``tokenizers`` object behind a Hugging Face tokenizer.

    Raises
    ------
    TokenizerError
        If the tokenizer is a slow Python one: it declares no decoder that could be read.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TokenizerError(
            f"tokenizer {describe(tokenizer)}: not backed by the tokenizers library, so it "
            "declares no decoder; convert it to a tokenizer.json and load that"
        )
    return backend


def describe(tokenizer: Any) -> str:
    """Name a tokenizer for an error message."""
    name = str(getattr(tokenizer, "name_or_path", "") or "")
    return repr(name) if name else f"of type {type(tokenizer).__name__}"


def component_state(component: Any) -> dict[str, Any] | None:
    """Return the JSON description of a normalizer, pre-tokenizer or decoder; None stays None."""
    if component is None:
        return None
    state: dict[str, Any] = json.loads(component.__getstate__())
    return state


def added_tokens(backend: Tokenizer) -> dict[int, Any]:
    """Return the added tokens (``tokenizers.AddedToken``) by ascending id."""
    return dict(sorted(backend.get_added_tokens_decoder().items()))


# A digest costs 0.1 s for a vocabulary of 150,000; the light state (3 ms) notices later changes.
_digests: weakref.WeakKeyDictionary[Any, tuple[bytes, str]] = weakref.WeakKeyDictionary()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 (hex) over everything that decides how a tokenizer encodes and decodes.

    For a tokenizer that was loaded from a local folder, the bytes of its ``tokenizer.json``, every
    16th token string of the object itself (an object retrained in memory keeps the folder's
    name), its components and its added tokens. For any other, its whole backend serialised,
    without the truncation and padding that a call may have left on it. Memoised per object.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast

    Raises
    ------
    TokenizerError
        If the tokenizer is not backed by the ``tokenizers`` library.

    Source
    ------
    algorithm.md section 2 (the table is bound to both tokenizers).
    """
    backend = backend_of(tokenizer)
    light = _light_state(backend)
    known = _digests.get(tokenizer)
    if known is not None and known[0] == light:
        return known[1]
    digest = hashlib.sha256(light)
    file_bytes = _source_file(tokenizer)
    if file_bytes is not None:
        digest.update(b"file\0" + hashlib.sha256(file_bytes).digest())
    else:
        digest.update(b"backend\0" + _canonical(backend))
    value = digest.hexdigest()
    _digests[tokenizer] = (light, value)
    return value


def _light_state(backend: Tokenizer) -> bytes:
    """Everything but merges and the tokens between the probes; changes when any of it changes."""
    size = backend.get_vocab_size(with_added_tokens=True)
    parts = [
        component_state(backend.normalizer),
        component_state(backend.pre_tokenizer),
        component_state(backend.decoder),
        type(backend.model).__name__,
        size,
        [backend.id_to_token(token_id) for token_id in range(0, size, _PROBE_STRIDE)],
        [
            (i, t.content, t.special, t.lstrip, t.rstrip, t.normalized, t.single_word)
            for i, t in added_tokens(backend).items()
        ],
    ]
    return json.dumps(parts, sort_keys=True).encode()


def _source_file(tokenizer: Any) -> bytes | None:
    folder = str(getattr(tokenizer, "name_or_path", "") or "")
    if not folder:
        return None
    path = Path(folder) / "tokenizer.json"
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError:  # an unreadable file is no reason to fail: the object itself is at hand
        return None


def _canonical(backend: Tokenizer) -> bytes:
    state = json.loads(backend.to_str())
    state["truncation"] = state["padding"] = None
    return json.dumps(state, sort_keys=True).encode()
