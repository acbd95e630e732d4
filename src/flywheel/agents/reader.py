"""Reading contexts that grow: keys and values stay between the turns of an episode, only new tokens are computed.

Slots hold one context each. What a slot has read is compared with what it is asked to read, so a window that starts
anew, a new episode in an old slot and a word that was decoded before need no signal: the common prefix is kept.

Shapes: B rows, N new tokens (right-padded), T tokens of the longest context, H heads, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

MAX_BATCH = 64
PASS_TOKENS = 48
"""What one more pass costs, in tokens that it could have computed instead (small models on a CPU, measured)."""


class SlotCache(Cache):
    """Keys and values by slot and layer; rows of one pass may sit at different positions of their contexts."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._stored: list[tuple[Tensor, Tensor]] = []
        self._slots_B = torch.empty(0, dtype=torch.long)
        self._positions_BN = torch.empty(0, 0, dtype=torch.long)
        self._every = False

    def point(self, slots_B: Tensor, positions_BN: Tensor, *, every: bool) -> None:
        """Say where the next pass writes. Padding may write past a row's end: the next tokens overwrite it.

        `every`: the rows are the slots from 0 on, in order, so that nothing needs to be gathered.
        """
        self._slots_B, self._positions_BN, self._every = slots_B, positions_BN, every

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store (B, H, N, D) of one layer; keys and values of the whole contexts, each (B, H, T, D)."""
        width = int(self._positions_BN.max()) + 1
        if layer_idx == len(self._stored):
            _, heads, _, width_D = key_states.shape
            empty = key_states.new_zeros(0, 0, heads, width_D)
            self._stored.append((empty, empty))
        slots = int(self._slots_B.max()) + 1
        pair = []
        for stored, new_BHND in zip(self._stored[layer_idx], (key_states, value_states), strict=True):
            grown = _grown(stored, new_BHND, slots, width)
            place_M = (self._slots_B[:, None] * grown.shape[1] + self._positions_BN).flatten()
            grown.flatten(0, 1).index_copy_(0, place_M, new_BHND.transpose(1, 2).flatten(0, 1))
            pair.append(grown)
        self._stored[layer_idx] = (pair[0], pair[1])
        rows = slice(0, len(self._slots_B)) if self._every else self._slots_B
        return pair[0][rows, :width].transpose(1, 2), pair[1][rows, :width].transpose(1, 2)


def _grown(stored: Tensor, like_BHND: Tensor, slots: int, length: int) -> Tensor:
    """`stored` (slots, positions, H, D) if it has room for these slots and positions; else a larger copy."""
    have_slots, have_length, _, _ = stored.shape
    if slots <= have_slots and length <= have_length:
        return stored
    if length > have_length:
        length = max(length, 2 * have_length)
    _, heads, _, width = like_BHND.shape
    larger = like_BHND.new_zeros(max(slots, have_slots), max(length, have_length), heads, width)
    larger[:have_slots, :have_length] = stored
    return larger


class Reader:
    """A model that remembers what each slot has read."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = SlotCache()
        self._read: dict[int, list[int]] = {}

    def read(self, slots: Sequence[int], contexts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V), on the CPU, of the token after each context. No slot may occur twice."""
        kept = [_common(self._read.get(slot, []), context) for slot, context in zip(slots, contexts, strict=True)]
        new = [len(context) - keep for context, keep in zip(contexts, kept, strict=True)]
        order = sorted(range(len(slots)), key=new.__getitem__)
        logits: list[Tensor] = [torch.empty(0)] * len(slots)
        for start, end in passes([new[row] for row in order]):
            rows = order[start:end]
            found_BV = self._pass(
                [slots[row] for row in rows],
                [kept[row] for row in rows],
                [list(contexts[row][kept[row] :]) for row in rows],
            )
            for row, found_V in zip(rows, found_BV, strict=True):
                logits[row] = found_V
        for slot, context in zip(slots, contexts, strict=True):
            self._read[slot] = list(context)
        return torch.stack(logits)

    def feed(self, slots: Sequence[int], tokens: Sequence[list[int]]) -> Tensor:
        """Append a few tokens to the context of each slot; logits (B, V) of the next.

        Where most slots take part, all of them do, the others with a token that the next pass overwrites: to compute
        a token too many is cheaper than to gather the keys and values of the others.
        """
        lengths = {slot: len(read) for slot, read in self._read.items()}
        every = sorted(lengths) == list(range(len(lengths))) and 2 * len(slots) > len(lengths) <= MAX_BATCH
        rows = list(range(len(lengths))) if every else list(slots)
        fed = dict(zip(slots, tokens, strict=True))
        new = [fed.get(slot, [0]) for slot in rows]
        logits_BV = self._pass(rows, [lengths[slot] for slot in rows], new, every=every)
        for slot, said in fed.items():
            self._read[slot] += said
        return logits_BV[torch.tensor(slots)] if every else logits_BV

    def _pass(
        self, slots: Sequence[int], starts: Sequence[int], new: Sequence[list[int]], *, every: bool = False
    ) -> Tensor:
        device = self._model.device
        width = max(map(len, new))
        ids_BN = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in new], device=device)
        positions_BN = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        reach_T = torch.arange(int(positions_BN.max()) + 1, device=device)
        self._cache.point(torch.tensor(slots, device=device), positions_BN, every=every)
        hidden_BND = self._model.base_model(
            input_ids=ids_BN,
            position_ids=positions_BN,
            attention_mask=(reach_T <= positions_BN[:, :, None])[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        last_B = torch.tensor([len(tokens) - 1 for tokens in new], device=device)
        logits_BV: Tensor = vocabulary_layer(self._model)(hidden_BND[torch.arange(len(slots), device=device), last_B])
        return logits_BV.float().cpu()


def vocabulary_layer(model: PreTrainedModel) -> nn.Module:
    """The layer from hidden states to logits."""
    layer: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return layer


def passes(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut rows, sorted by their number of new tokens, into passes [start, end): the cheapest way, where padding to the
    longest row of a pass costs as much as reading, and each pass costs `PASS_TOKENS` more."""
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(lengths) + 1):
        first = max(0, end - MAX_BATCH)
        best.append(
            min((best[start][0] + PASS_TOKENS + (end - start) * lengths[end - 1], start) for start in range(first, end))
        )
    cuts, end = list[tuple[int, int]](), len(lengths)
    while end:
        cuts.append((best[end][1], end))
        end = best[end][1]
    return cuts[::-1]


def _common(read: Sequence[int], context: Sequence[int]) -> int:
    """Tokens of `context` that need no computing: what was read before, less one that gives the logits."""
    limit = min(len(read), len(context) - 1)
    if list(read[:limit]) == list(context[:limit]):
        return limit
    return next(index for index in range(limit) if read[index] != context[index])
