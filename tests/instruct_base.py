"""A tiny base with a chat template, as an instruct model has: byte-level tokens, and those of ChatML."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOOLS_TEMPLATE = (Path(__file__).parents[1] / "examples" / "helpdesk" / "tools.jinja").read_text()


def instruct_tokenizer(template: str | None = TOOLS_TEMPLATE) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    return fast


def save_base(folder: Path, template: str | None = TOOLS_TEMPLATE) -> Path:
    """A checkpoint of random weights."""
    tokenizer = instruct_tokenizer(template)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, **size)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder
