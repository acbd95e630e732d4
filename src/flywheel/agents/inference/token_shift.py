"""Qwen3 with a token shift: each token's input holds a share of the token before it.

    x_t = E[id_t] + s ⊙ E[id_{t-1}]        s: one learned share a channel; nothing across documents

What followed a word before is what a model must find to copy a name out of its context. Two layers need both of their
attentions for that, one to carry each token to its successor and one to match it; with the shift the first is free
(docs/experiments/0013). RWKV mixes tokens so before every block (arXiv 2305.13048, section 3); here it is done once, on
the embeddings.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.modeling_outputs import BaseModelOutputWithPast

INITIAL_SHARE = 0.5


class TokenShiftConfig(Qwen3Config):  # type: ignore[no-untyped-call]
    """Qwen3's settings under another name."""

    model_type = "qwen3_token_shift"


class TokenShiftModel(Qwen3Model):  # type: ignore[no-untyped-call]
    """Layers without the output projection."""

    config_class = TokenShiftConfig

    def __init__(self, config: TokenShiftConfig) -> None:
        super().__init__(config)
        self.share_D = nn.Parameter(torch.full((config.hidden_size,), INITIAL_SHARE))

    def embedded(self, ids_BT: Tensor, positions_BT: Tensor, before_BT: Tensor | None = None) -> Tensor:
        """(B, T, D): what the first layer reads. A token at position 0 has none before it.

        `before_BT`: the token before each, where that is not its neighbour in the row.
        """
        own_BTD: Tensor = self.embed_tokens(ids_BT)
        before_BTD = own_BTD.roll(1, dims=1) if before_BT is None else self.embed_tokens(before_BT)
        return own_BTD + self.share_D * before_BTD * (positions_BT > 0)[..., None]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        before_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As Qwen3's. `before_ids` (B, T): the token before each, where that is not its neighbour in the row.

        Raises `ValueError` where a token's predecessor cannot be known: for embeddings in place of ids, and where a
        row goes on from a cache without `before_ids`, which `generate` gives.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("a model with a token shift reads input_ids, not inputs_embeds")
        start = past_key_values.get_seq_length() if past_key_values is not None else 0
        if start and before_ids is None:
            raise ValueError("a row that goes on from a cache needs before_ids, the token before each of input_ids")
        if position_ids is None:
            position_ids = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
        output: BaseModelOutputWithPast = super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=self.embedded(input_ids, position_ids, before_ids),
            use_cache=use_cache,
            **kwargs,
        )
        return output


class TokenShiftForCausalLM(Qwen3ForCausalLM):  # type: ignore[no-untyped-call]
    """With the output projection."""

    config_class = TokenShiftConfig

    def __init__(self, config: TokenShiftConfig) -> None:
        super().__init__(config)
        self.model = TokenShiftModel(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What `generate` gives a step: with the token before each of its tokens."""
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        inputs: dict[str, Any] = prepare(input_ids, *args, **kwargs)
        before_BT = torch.cat([input_ids[:, :1], input_ids[:, :-1]], dim=1)
        return inputs | {"before_ids": before_BT[:, -inputs["input_ids"].shape[1] :]}


def register_models() -> None:
    """Let transformers' Auto classes load such models."""
    AutoConfig.register(TokenShiftConfig.model_type, TokenShiftConfig, exist_ok=True)
    AutoModelForCausalLM.register(TokenShiftConfig, TokenShiftForCausalLM, exist_ok=True)
