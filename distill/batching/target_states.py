"""The last layer computed at target tokens alone, which are few in a packed row.

Keys and values of every token, but queries, attention, feed-forward and norm of the targets alone: with two layers and
a tenth of the tokens targets, that is a third of the work less. For models of Qwen3's shape, which students from
scratch have; the result is that of the whole forward pass (`tests/test_packing.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, apply_rotary_pos_emb

from flywheel.agents.inference.token_shift import TokenShiftModel


def fits(model: PreTrainedModel) -> bool:
    """Has it the shape that is computed here: Qwen3's, all of whose layers see the whole context?"""
    if not isinstance(model, Qwen3ForCausalLM):
        return False
    return not model.config.use_sliding_window and not model.config.attention_dropout


def narrow_states(model: PreTrainedModel, ids_BT: Tensor, positions_BT: Tensor, wanted_BT: Tensor) -> Tensor:
    """(N, D): the last hidden states of the wanted tokens, each document blind to the others."""
    inner = model.model
    x_BTD = inner.embedded(ids_BT, positions_BT) if isinstance(inner, TokenShiftModel) else inner.embed_tokens(ids_BT)
    cos, sin = inner.rotary_emb(x_BTD, positions_BT)
    document_BT = (positions_BT == 0).cumsum(1)
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    mask_BTT = same_BTT & torch.ones_like(same_BTT[0]).tril()
    for layer in inner.layers[:-1]:
        x_BTD = layer(
            x_BTD, attention_mask=mask_BTT[:, None], position_ids=positions_BT, position_embeddings=(cos, sin)
        )
    last = inner.layers[-1]
    rows_N, places_N = wanted_BT.nonzero(as_tuple=True)
    counts_B = wanted_BT.sum(1)
    queue_N = torch.cat([torch.arange(count, device=ids_BT.device) for count in counts_B.tolist()])
    place_BQ = places_N.new_zeros(len(ids_BT), int(counts_B.max()))
    place_BQ[rows_N, queue_N] = places_N
    attended_BQD = _attend(last.self_attn, last.input_layernorm(x_BTD), place_BQ, cos, sin, mask_BTT)
    h_ND = x_BTD[rows_N, places_N] + attended_BQD[rows_N, queue_N]
    states_ND: Tensor = inner.norm(h_ND + last.mlp(last.post_attention_layernorm(h_ND)))
    return states_ND


def _attend(
    attention: Qwen3Attention, x_BTD: Tensor, place_BQ: Tensor, cos: Tensor, sin: Tensor, mask_BTT: Tensor
) -> Tensor:
    """(B, Q, D): grouped-query attention of the tokens at `place_BQ` to all that they may read."""
    batch, length, _ = x_BTD.shape
    width = attention.head_dim
    row_B1 = torch.arange(batch, device=x_BTD.device)[:, None]
    asked = attention.q_norm(attention.q_proj(x_BTD[row_B1, place_BQ]).view(*place_BQ.shape, -1, width))
    known = attention.k_norm(attention.k_proj(x_BTD).view(batch, length, -1, width)).transpose(1, 2)
    value = attention.v_proj(x_BTD).view(batch, length, -1, width).transpose(1, 2)
    asked = asked.transpose(1, 2)
    asked = apply_rotary_pos_emb(asked, asked, cos[row_B1, place_BQ], sin[row_B1, place_BQ])[0]
    known = apply_rotary_pos_emb(known, known, cos, sin)[0]
    attended = scaled_dot_product_attention(
        asked, known, value, mask_BTT[row_B1, place_BQ][:, None], scale=attention.scaling, enable_gqa=True
    )
    out_BQD: Tensor = attention.o_proj(attended.transpose(1, 2).reshape(batch, place_BQ.shape[1], -1))
    return out_BQD
