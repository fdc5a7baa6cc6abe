"""The target's own choice of a token: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

import hashlib

import torch


def beam_generator(seed: int, beam: int) -> torch.Generator:
    """Return the generator of one beam: its draws depend on the seed and its index alone."""
    # torch's generator on a CPU takes 32 bits of a seed: all of ours are to count in them.
    mixed = hashlib.blake2b(f"{seed} {beam}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed))


def draw(
    logits: torch.Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: torch.Generator,
) -> int:
    """Draw one token id.

    Temperature first, then the ``top_k`` most probable (0: all), then the smallest set of the
    most probable whose mass reaches ``top_p``; of equals the lower id first. One uniform number
    is drawn on the CPU, so that a seed gives the same number on every device.

    Parameters
    ----------
    logits : torch.Tensor [width]
        Finite, or -inf; float32 arithmetic.
    temperature : float
        Above 0.
    """
    # From the best down, and by no less than float32 knows: what overflows is far below the best.
    logits = logits.float()
    scaled = (logits - logits.max()) / max(temperature, torch.finfo(torch.float32).tiny)
    order = scaled.sort(descending=True, stable=True)
    probs = order.values.softmax(-1).double()
    if top_k > 0:
        probs[top_k:] = 0
    if top_p < 1:
        kept = probs / probs.sum()
        probs = torch.where(kept.cumsum(-1) - kept < top_p, probs, 0.0)
    cumulated = probs.cumsum(-1)
    uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
    place = int((cumulated <= uniform * float(cumulated[-1])).sum())
    # Rounding may point behind the last token that has any mass.
    place = min(place, int((probs > 0).sum()) - 1)
    return int(order.indices[place])
