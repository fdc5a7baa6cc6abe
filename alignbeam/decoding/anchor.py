"""The anchor's side of a batch: its rows, shown each beam's text, and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignbeam.decoding.beam import Beam, Request
from alignbeam.decoding.mixing import Mixer
from alignbeam.errors import PromptError
from alignbeam.models.role import Role
from alignbeam.result import StepSource
from alignbeam.vocab.bridge import Bridge
from alignbeam.vocab.retokenize import Retokenizer, UnspellableBytes, split_utf8


class Steering:
    """What steers a target: the anchor, its retokeniser, and the op over the bridge."""

    def __init__(self, anchor: Role, bridge: Bridge, device: torch.device) -> None:
        self.anchor = anchor
        self.retokenizer = Retokenizer(anchor.tokenizer, anchor.token_bytes)
        self.mix = Mixer(bridge, device, after_opening=self._after_opening())
        self.opening_id = self._opening_id()

    def _opening_id(self) -> int | None:
        """Return the anchor's token for exactly its opening, if there is one.

        The anchor says it before whatever does not merge with the opening: Llama-2's lone blank
        before a digit.
        """
        opening = self.anchor.opening
        ids = self.retokenizer.encode(opening) if opening else []
        return ids[0] if len(ids) == 1 else None

    def _after_opening(self) -> torch.Tensor:
        """Mark the anchor's columns [Va] that may follow its opening token.

        A token that begins with the opening would spell it twice.
        """
        anchor = self.anchor
        starts = [(b or b"").startswith(anchor.opening) for b in anchor.token_bytes]
        starts += [False] * (anchor.width - len(starts))
        return ~torch.tensor(starts)


class AnchorRows:
    """The anchor's KV rows for the beams of one batch that are still mixing.

    The prompt is tokenised once. A beam's text is tokenised anew at each step, as the anchor
    would read it; the rows are taken back to the longest common prefix and fed the rest.
    """

    def __init__(
        self, steering: Steering, requests: Sequence[Request], beams: Sequence[Beam] = ()
    ) -> None:
        """Prefill one row per request; ``beams`` are theirs where they are already open."""
        self.steering = steering
        self._requests = requests
        self._rows = steering.anchor.rows([r.anchor_ids for r in requests])
        self._beams: list[Beam] = list(beams)

    @property
    def logits(self) -> torch.Tensor:
        """Logits [rows, Va] of all rows."""
        return self._rows.logits

    def opening_logits(self) -> torch.Tensor:
        """Return the logits of the first step.

        They are [rows, Va], or [rows, 2 Va] where the anchor has a token for exactly its opening.
        That token says nothing of the answer yet; its probability belongs to what follows it. So
        it is fed, and the second half of the columns holds what the anchor says then::

            p(a)        without the opening token        first half
            p(opening) * p(a | opening)                  second half

        Source: algorithm.md, section 2, The opening.
        """
        opening = self.steering.opening_id
        if opening is None:
            return self._rows.logits
        first = self._rows.logits.float().log_softmax(-1)
        then = self._rows.extend([[opening]] * len(self._rows)).float().log_softmax(-1)
        weight = first[:, opening, None].clone()
        first[:, opening] = float("-inf")
        return torch.cat([first, weight + then], dim=1)

    def fork(self) -> None:
        """Give each beam of each request its own row."""
        self._rows.select([j for j, r in enumerate(self._requests) for _ in r.beams])
        self._beams = [b for r in self._requests for b in r.beams]

    def mixing(self) -> list[Beam]:
        """Return the beams whose next token is to be mixed."""
        return [b for b in self._beams if b.mixing]

    def logits_of(self, beams: Sequence[Beam]) -> torch.Tensor:
        """Logits [len(beams), Va] of these beams."""
        if list(beams) == self._beams:
            return self._rows.logits
        row_of = {id(beam): row for row, beam in enumerate(self._beams)}
        return self._rows.logits[[row_of[id(b)] for b in beams]]

    def prune(self) -> None:
        """Drop the rows that mix no longer, once they are half of all."""
        keep = [j for j, b in enumerate(self._beams) if b.mixing]
        if keep and 2 * len(keep) <= len(self._beams):
            self._rows.select(keep)
            self._beams = [self._beams[j] for j in keep]

    def join(self, other: AnchorRows) -> None:
        """Take in the rows of another batch; ``other`` is used up."""
        self._rows.join(other._rows)
        self._beams += other._beams

    def leave(self) -> None:
        """Drop the rows that mix no longer, at once."""
        keep = [j for j, b in enumerate(self._beams) if b.mixing]
        if len(keep) < len(self._beams):
            self._rows.select(keep)
            self._beams = [self._beams[j] for j in keep]

    def show(self, mixing: Sequence[Beam]) -> dict[int, StepSource]:
        """Show the anchor the text of these beams.

        Returns
        -------
        dict of int to StepSource
            ``id(beam)`` of the beams it cannot be asked about now, and why. A beam whose text
            no longer fits the anchor's window fails its request.
        """
        anchor = self.steering.anchor
        alone: dict[int, StepSource] = {}
        suffixes: dict[int, list[int]] = {}
        for beam in mixing:
            complete, unfinished = split_utf8(anchor.opening + beam.text_bytes)
            if unfinished:
                alone[id(beam)] = "target:unfinished-character"
                continue
            try:
                suffix = self.steering.retokenizer.encode(complete)
            except UnspellableBytes:
                alone[id(beam)] = "target:unspellable-bytes"
                continue
            try:
                anchor.check_room(len(beam.request.anchor_ids), len(suffix))
            except PromptError as error:
                beam.request.fail(error)
                continue
            suffixes[id(beam)] = suffix
        if suffixes:
            self._rows.replace_suffixes(
                [len(b.request.anchor_ids) for b in self._beams],
                [suffixes.get(id(b)) for b in self._beams],
            )
        return alone
