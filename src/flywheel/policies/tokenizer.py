"""Phrase-level byte-level BPE, trained on the collected text.

Environments speak in templates. Splitting only after sentence and list punctuation lets merges cross words, so that
a whole template becomes one token. What actions name is kept apart from its surroundings: `red onion` is the same
token in a document, in a view and in an action, which is what lets a small student learn to point at things. Bytes
underneath keep it lossless for text it has never met.

Where actions are tool calls, the words that stand as values in their JSON are such names, and what stands between two
of them, `", "category": "`, may become one token. Numbers are cut into threes of digits, as Llama 3 does: an order
number is copied in two steps, of which the second follows from the first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from flywheel.agents.contexts.prompts import END, PAD, SPECIAL_TOKENS
from flywheel.text import strings_in

_MARKERS = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
_NUMBERS = re.compile(r"\d+")
SHORTEST_NAME, LONGEST_NAME = 3, 40
"""Characters of a value that names something."""
_CONNECTIVES = re.compile(r" (?:in|on|to|with|from|into) ")


def named_things(actions: Iterable[str]) -> list[str]:
    """What a set of actions names: their arguments, longest first. `cook red onion in oven` → `red onion`, `oven`."""
    names: set[str] = set()
    for action in actions:
        _, _, arguments = action.partition(" ")
        names.update(name.strip() for name in _CONNECTIVES.split(f" {arguments}") if name.strip())
    return sorted(names, key=lambda name: (-len(name), name))


def named_values(texts: Iterable[str]) -> list[str]:
    """The words that stand as values in more than one of some JSON texts, without their numbers: `12 Elm Street` names
    Elm Street."""
    counts: Counter[str] = Counter()
    for text in texts:
        words = (part.strip() for value in strings_in(text) for part in _NUMBERS.split(value))
        counts.update({word for word in words if SHORTEST_NAME <= len(word) <= LONGEST_NAME})
    return [name for name, count in counts.items() if count > 1]


def train_tokenizer(
    texts: Iterable[str], names: list[str], vocabulary: int, *, numbers: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens whose first ids are the context markers. `names`: what actions name;
    `numbers`: every number of up to three digits is a token, too, beyond `vocabulary`.

    What spells a marker is cut out of the texts first: the trainer would merge its letters into the marker itself.
    """
    ends = r"[.!?\n]" if numbers else r"[.!?:,\n]"
    splits = [pre_tokenizers.Split(Regex(ends), behavior="merged_with_previous")]
    if names:
        pattern = rf"\b(?:{'|'.join(re.escape(name) for name in names)})\b"
        splits.insert(0, pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for text in texts for part in _MARKERS.split(text)), trainer)
    if numbers:
        tokenizer.add_tokens([f"{number:0{digits}}" for digits in (1, 2, 3) for number in range(10**digits)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (PAD, END)],
    )
