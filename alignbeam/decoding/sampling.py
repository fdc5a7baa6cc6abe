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
    is drawn on the CPU, so that a seed gives the same number on every device, and the tokens lie
    along it by id: by rank, two near equals that change places, as they do from one batch to
    another, would change the draw.

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
    probs = scaled.softmax(-1).double()
    ids = _kept(scaled, probs, top_k, top_p)
    cumulated = probs[ids].cumsum(-1)
    uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
    place = int((cumulated <= uniform * float(cumulated[-1])).sum())
    # Rounding may point behind the last.
    return int(ids[min(place, len(ids) - 1)])


def _kept(scaled: torch.Tensor, probs: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Return the ids that a draw may give, ascending; each has a probability above 0."""
    if top_k > 0:
        worst = scaled.topk(min(top_k, len(scaled))).values[-1]
        ids = ((scaled >= worst) & (probs > 0)).nonzero().squeeze(-1)
    elif top_p < 1:
        # All that are less probable than this hold less than 1 - top_p together: a sort of the
        # few others is what makes a nucleus cheap. Half of it, for what rounding does.
        ids = (probs > (1 - top_p) / (2 * len(probs))).nonzero().squeeze(-1)
    else:
        return probs.nonzero().squeeze(-1)
    ids = ids[scaled[ids].sort(descending=True, stable=True).indices]
    if top_k > 0:
        ids = ids[:top_k]
    if top_p < 1:
        # Without top-k the others have their share too.
        mass = probs[ids]
        whole = mass.sum() if top_k > 0 else probs.sum()
        ids = ids[mass.cumsum(-1) - mass < top_p * whole]
    return ids.sort().values
