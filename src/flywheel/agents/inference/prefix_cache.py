"""Reading contexts that grow: keys and values stay between the turns of an episode, only new tokens are computed.

Slots hold one context each. What a slot has read is compared with what it is asked to read, so a window that starts
anew, a new episode in an old slot and a word that was decoded before need no signal: the common prefix is kept.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flywheel.agents.inference.kv_cache import KVCache
from flywheel.agents.inference.token_shift import TokenShiftModel

PASS_ROWS = 64
PASS_TOKENS = 4096
"""The most rows and new tokens of a pass, unless one row has more: what a pass needs is bounded."""


class PrefixCache:
    """A model that remembers what each slot has read."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._slots = KVCache(model)
        self._read: dict[int, list[int]] = {}
        self.faulty: set[int] = set()
        """Slots whose newest logits are not all finite; what they had read is forgotten."""

    def read(self, slots: Sequence[int], contexts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V), on the CPU, of the token after each context. No slot may occur twice."""
        kept = [
            common_prefix(self._read.get(slot, []), context[:-1])  # the last token is computed anew, for its logits
            for slot, context in zip(slots, contexts, strict=True)
        ]
        new = [list(context[keep:]) for context, keep in zip(contexts, kept, strict=True)]
        for slot, context, keep in zip(slots, contexts, kept, strict=True):
            self._read[slot] = list(context[:keep])  # what stays true if the pass fails
        logits_BV = self._computed(slots, kept, new)
        for slot, context in zip(slots, contexts, strict=True):
            self._read[slot] = [] if slot in self.faulty else list(context)
        return logits_BV

    @property
    def nbytes(self) -> int:
        """What it remembers takes so many bytes."""
        return self._slots.nbytes

    def feed(self, slots: Sequence[int], tokens: Sequence[list[int]]) -> Tensor:
        """Append a few tokens to the context of each slot; logits (B, V) of the next."""
        logits_BV = self._computed(slots, [len(self._read[slot]) for slot in slots], tokens)
        for slot, generated in zip(slots, tokens, strict=True):
            if slot not in self.faulty:
                self._read[slot] += generated
        return logits_BV

    def _computed(self, slots: Sequence[int], starts: Sequence[int], new: Sequence[list[int]]) -> Tensor:
        self.faulty.clear()
        order = sorted(range(len(slots)), key=lambda row: len(new[row]))
        found_BV = torch.cat(
            [
                self._pass([slots[row] for row in rows], [starts[row] for row in rows], [new[row] for row in rows])
                for rows in _passes(order, new)
            ]
        )
        logits_BV = torch.empty_like(found_BV)
        logits_BV[order] = found_BV
        return logits_BV

    def _pass(self, slots: Sequence[int], starts: Sequence[int], new: Sequence[list[int]]) -> Tensor:
        """The logits of some rows, those with few new tokens first."""
        device = self._model.device
        lengths = [len(tokens) for tokens in new]
        options: dict[str, Any] = {"slots": self._slots}
        if isinstance(self._model.base_model, TokenShiftModel):
            before = [
                token
                for slot, start, tokens in zip(slots, starts, new, strict=True)
                for token in [self._read[slot][start - 1] if start else tokens[0], *tokens[:-1]]
            ]
            options["before_ids"] = torch.tensor([before], device=device)
        hidden_MD = self._model.base_model(
            input_ids=torch.tensor([[token for tokens in new for token in tokens]], device=device),
            position_ids=self._slots.point(slots, starts, lengths),
            attention_mask=torch.empty(1, 1, 1, 1, device=device),  # has four axes, so that the model makes none
            use_cache=False,
            **options,
        ).last_hidden_state[0]
        self._slots.check()
        last_B = torch.tensor(lengths, device=device).cumsum(0) - 1
        logits_BV: Tensor = vocabulary_layer(self._model)(hidden_MD[last_B])
        finite_B = logits_BV.isfinite().all(-1)
        if not finite_B.all():
            for row in (~finite_B).nonzero()[:, 0].tolist():
                self._slots.wipe(slots[row])  # NaN would reach the slot's next user, masked or not
                self._read[slots[row]] = []
                self.faulty.add(slots[row])
        return logits_BV.float().cpu()


def vocabulary_layer(model: PreTrainedModel) -> nn.Module:
    """The layer from hidden states to logits."""
    layer: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return layer


def _passes(order: Sequence[int], new: Sequence[list[int]]) -> Iterator[list[int]]:
    """Rows in that order, cut where a pass has enough tokens."""
    rows: list[int] = []
    tokens = 0
    for row in order:
        if rows and (len(rows) == PASS_ROWS or tokens + len(new[row]) > PASS_TOKENS):
            yield rows
            rows, tokens = [], 0
        rows.append(row)
        tokens += len(new[row])
    yield rows


def common_prefix(read: Sequence[int], context: Sequence[int]) -> int:
    """How many tokens two contexts have in common from their beginning."""
    limit = min(len(read), len(context))
    if list(read[:limit]) == list(context[:limit]):
        return limit
    return next(index for index in range(limit) if read[index] != context[index])
