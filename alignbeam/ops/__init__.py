"""The mixing step, one function in front of several backends."""

from __future__ import annotations

from torch import Tensor

from alignbeam.ops import dispatch
from alignbeam.ops.dispatch import BackendStatus, backends
from alignbeam.ops.spec import MAX_TOP_B, MAX_TOP_K, Flags, MixResult

__all__ = [
    "MAX_TOP_B",
    "MAX_TOP_K",
    "BackendStatus",
    "Flags",
    "MixResult",
    "backends",
    "mix_topk",
]


def mix_topk(
    anchor_logits: Tensor,
    target_logits: Tensor,
    table: Tensor,
    *,
    alpha: float | Tensor = 0.5,
    top_b: int = 50,
    top_k: int = 1,
    mix: str = "linear",
    support: str = "anchor",
    backend: str = "auto",
) -> MixResult:
    """Mix an anchor's next-token distribution into a target's of another vocabulary.

    For each row ``r``::

        p    = softmax(anchor_logits[r])      q = softmax(target_logits[r])
        T    = the top_b anchor ids, by (logit descending, id ascending)
        S    = {table[a] : a in T, table[a] >= 0}
        a(d) = sum of p[a] over a in T with table[a] = d
        f(d) = alpha * a(d) + (1 - alpha) * q(d)      mix="linear"
        f(d) = a(d)**alpha * q(d)**(1 - alpha)        mix="log", with 0**0 = 1
        F    = f / sum of f over S
        out  = the top_k ids of F, by (F descending, id ascending), with log F

    Rows are independent: a row's bits depend neither on the others nor on how many there are.

    Parameters
    ----------
    anchor_logits : Tensor
        float32, bfloat16 or float16 [R, Va]; any row stride, last dimension contiguous. -inf is a
        probability of 0.
    target_logits : Tensor
        The same, [R, Vt], on the same device; its dtype may differ.
    table : Tensor
        int32 [Va], the target id of each anchor id, or -1. Its entries are checked once, not at
        each step.
    alpha : float or Tensor
        Weight of the anchor, 0..1; one for all rows, or float32 [R].
    top_b : int
        How many anchor ids are translated, 1..min(Va, 256).
    top_k : int
        How many target ids are returned, 1..8.
    mix : {"linear", "log"}
        Mix probabilities, as the paper does, or log-probabilities.
    support : {"anchor", "union"}
        "union" widens S to every target id; then alpha = 0 is the plain target.
    backend : str
        "auto", or a name of `backends`. One asked for by name never falls back to another.

    Returns
    -------
    MixResult
        New tensors on the logits' device. A row with fewer than ``top_k`` ids in S ends in id -1,
        log-prob -inf. Where S is empty, or nothing in it has any probability, the row holds the
        top_k of q and is flagged EMPTY_SUPPORT. A row with NaN or +inf, or with nothing but -inf,
        gets ids -1, log-probs and masses NaN, and NON_FINITE.

    Raises
    ------
    TypeError, ValueError
        Arguments outside the contract. On a GPU, an alpha tensor is not read back: a row whose
        alpha is out of range is flagged NON_FINITE.
    BackendUnavailable
        ``backend`` cannot run here; the message says why and what mends it.

    Notes
    -----
    Source: arXiv 2606.12342, Logit Bridge Mixing; docs/algorithm.md, section 3. log F is within
    1e-5 (float32) or 2e-5 (bfloat16, float16) of the float64 reference. On the CPU,
    ``torch.get_num_threads()`` threads share the work.
    """
    # What is no tensor has no device; whichever backend gets it refuses it.
    on_cpu = not isinstance(anchor_logits, Tensor) or anchor_logits.is_cpu
    run = dispatch.resolve("cpu" if on_cpu else anchor_logits.device.type, backend)
    return run(
        anchor_logits,
        target_logits,
        table,
        alpha=alpha,
        top_b=top_b,
        top_k=top_k,
        mix=mix,
        support=support,
    )
