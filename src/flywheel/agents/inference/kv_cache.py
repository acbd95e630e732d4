"""Keys and values by slot, and attention over them, so that new tokens of many contexts are computed without padding.

A model is given the new tokens of a pass as one row, as transformers' continuous batching does it. Only attention
knows that they belong to different slots: there, rows of like length form groups that are padded among themselves.

Shapes: M new tokens of all rows, B rows of a group, N the most new tokens of one of them, T positions of the longest
context, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from flywheel.errors import ConfigError

Ints = NDArray[np.int64]
NAME = "slots"
"""Of this attention, among those of transformers."""
GROUP_TOKENS = 24
"""What one more group costs, in tokens of padding that it could have saved (small models on a CPU, measured)."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that attend together. `rows`: their slots, or a slice of slots, which costs no copy of keys and values."""

    rows: Tensor | slice
    new_BN: Tensor
    """Each row's new tokens by their place among the M."""
    positions_BN: Tensor
    reach: int
    """T: positions that are kept of the longest of them."""
    back: Tensor
    """The places of the group's own tokens among its B * N."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """What is added to scores (B, 1, N, T), by the width of the layer's sliding window: what a token must not see."""

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        if window not in self.masks:
            reach_T = torch.arange(self.reach, device=self.positions_BN.device)
            positions_B1N1 = self.positions_BN[:, None, :, None]
            unseen = reach_T > positions_B1N1
            if window is not None:
                unseen |= reach_T <= positions_B1N1 - window
            mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
            self.masks[window] = mask.masked_fill_(unseen, -torch.inf)
        return self.masks[window]


class KVCache:
    """What each slot has read, as keys and values of each layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
        self._model = model
        if model.config._attn_implementation != NAME:
            raise self._refusal("its attention cannot be exchanged")
        self._stored: list[tuple[Tensor, ...]] = []
        self._room = (0, 0)
        """Slots and positions that there is room for."""
        self._place_M = torch.empty(0, dtype=torch.long)
        self._groups: list[_Group] = []
        self._attended = False

    def point(self, slots: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Say whose tokens come next, rows with few of them first; the positions (1, M) of the tokens."""
        lengths_B = np.asarray(lengths)
        first_B = lengths_B.cumsum() - lengths_B
        positions_M = np.repeat(np.asarray(starts) - first_B, lengths_B) + np.arange(lengths_B.sum())
        self._reserve(max(slots) + 1, int(positions_M.max()) + 1)
        self._place_M = self._there(np.repeat(np.asarray(slots), lengths_B) * self._room[1] + positions_M)
        self._groups = [
            self._group(slots[start:end], first_B[start:end], lengths_B[start:end], positions_M)
            for start, end in groups(lengths)
        ]
        self._attended = False
        return self._there(positions_M)[None]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Keep keys and values (1, H, M, D) of one layer; the attention output of its tokens, (1, M, H, D).

        Raises `ConfigError` for attention that is more than a softmax over keys.
        """
        if options.get("s_aux") is not None or options.get("softcap") is not None:
            raise self._refusal("its attention has sinks or a soft cap")
        self._attended = True
        layer = module.layer_idx
        assert isinstance(layer, int)
        if layer == len(self._stored):
            self._stored.append(tuple(new.new_zeros(*self._room, new.shape[1], new.shape[3]) for new in (key, value)))
        for stored, new in zip(self._stored[layer], (key, value), strict=True):
            stored.flatten(0, 1).index_copy_(0, self._place_M, new[0].transpose(0, 1))
        hidden = []
        for group in self._groups:
            keys, values = (stored[group.rows, : group.reach].transpose(1, 2) for stored in self._stored[layer])
            new = query[0][:, group.new_BN].transpose(0, 1)
            mask = group.mask(options.get("sliding_window"), query.dtype)
            heard_BNHD, _ = sdpa_attention_forward(module, new, keys, values, mask, **options)
            hidden.append(heard_BNHD.flatten(0, 1)[group.back])
        return torch.cat(hidden)[None]

    @property
    def nbytes(self) -> int:
        """What keys and values take."""
        return sum(tensor.nbytes for pair in self._stored for tensor in pair)

    def wipe(self, slot: int) -> None:
        """Forget what a slot has read, down to its numbers: a masked NaN is still one."""
        for pair in self._stored:
            for stored in pair:
                stored[slot] = 0

    def check(self) -> None:
        """Raises `ConfigError` if the last pass attended to something else: rows would have read each other."""
        if not self._attended:
            raise self._refusal("its layers do not hand on what its attention is given")

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(f"{type(self._model).__name__} cannot be run here: {why}; take Llama, Qwen or Mistral")

    def _group(self, slots: Sequence[int], first_B: Ints, lengths_B: Ints, positions_M: Ints) -> _Group:
        count, most = len(slots), int(lengths_B[-1])
        rows = slice(slots[0], slots[0] + 1) if count == 1 else self._there(np.asarray(slots))
        new_BN = first_B[:, None] + np.minimum(np.arange(most), lengths_B[:, None] - 1)
        own_BN = np.arange(most) < lengths_B[:, None]
        back = (np.arange(count)[:, None] * most + np.arange(most))[own_BN]
        positions_BN = positions_M[new_BN]
        reach = int(positions_BN.max()) + 1
        return _Group(rows, self._there(new_BN), self._there(positions_BN), reach, self._there(back))

    def _reserve(self, slots: int, length: int) -> None:
        """Make room for so many slots and positions."""
        have_slots, have_length = self._room
        if slots <= have_slots and length <= have_length:
            return
        if slots > have_slots:
            have_slots = max(slots, have_slots + have_slots // 4)
        if length > have_length:
            have_length = max(length, 2 * have_length)
        before, self._room = self._room, (have_slots, have_length)
        self._stored = [tuple(_grown(tensor, before, self._room) for tensor in pair) for pair in self._stored]

    def _there(self, numbers: Ints) -> Tensor:
        return torch.from_numpy(numbers).to(self._model.device)


def _grown(stored: Tensor, before: tuple[int, int], room: tuple[int, int]) -> Tensor:
    larger = stored.new_zeros(*room, *stored.shape[2:])
    larger[: before[0], : before[1]] = stored
    return larger


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: KVCache | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: without `slots`, as in training, its SDPA."""
    if slots is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return slots.attend(module, query, key, value, **options), None


def groups(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut rows, sorted by their number of new tokens, into groups [start, end): the cheapest way, where padding to the
    longest row of a group costs as much as its tokens, and each group costs `GROUP_TOKENS` more."""
    ends = [row for row in range(1, len(lengths) + 1) if row == len(lengths) or lengths[row] != lengths[row - 1]]
    best: dict[int, tuple[int, int]] = {0: (0, 0)}
    for end in ends:
        longest = lengths[end - 1]
        best[end] = min((cost + GROUP_TOKENS + (end - start) * longest, start) for start, (cost, _) in best.items())
    cuts, end = list[tuple[int, int]](), len(lengths)
    while end:
        cuts.append((best[end][1], end))
        end = best[end][1]
    return cuts[::-1]
