"""What tool calls under a schema cost, beside the other libraries for it, JSON on stdout.

python benchmarks/grammars.py [--calls 200]

Everyone gets the same tokenizer, tools and calls, walks along the calls token by token, and gives a boolean mask of the
vocabulary before each token. `compile_ms`: making the grammar, and for outlines-core its index; `step_us`: a mask and
the token after it. Peers that are not installed are left out: pip install xgrammar outlines-core.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.agents.contexts.prompts import END
from flywheel.agents.contexts.tokenization import encode_plain, token_id
from flywheel.agents.inference.grammars import Grammars
from flywheel.environments.tools import ANSWER_TOOL, Toolbox
from flywheel.policies.tokenizer import train_tokenizer

NAMES = ("read", "write", "search", "move", "delete", "run")
Masks = Iterator[NDArray[np.bool_]]
Walk = Callable[[Sequence[int]], Masks]
"""Along the tokens of a call: the mask before each of them."""


def tool(name: str) -> dict[str, Any]:
    properties = {
        "path": {"type": "string"},
        "lines": {"type": "array", "items": {"type": "integer"}},
        "mode": {"enum": ["fast", "safe"]},
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["path", "lines", "mode"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def call(chance: random.Random) -> str:
    path = "/".join(chance.choice(["notes", "src", "data", "été"]) for _ in range(3))
    arguments = {
        "path": path,
        "lines": [chance.randrange(99) for _ in range(3)],
        "mode": chance.choice(["fast", "safe"]),
    }
    return f"{chance.choice(NAMES)} {json.dumps(arguments, ensure_ascii=False)}"


def ours(tokenizer: Any, tools: str, end: int) -> tuple[float, Walk]:
    began = time.perf_counter()
    grammars = Grammars(tokenizer, end)
    grammars.matcher(tools)
    compiled = time.perf_counter() - began

    def walk(tokens: Sequence[int]) -> Masks:
        matcher = grammars.matcher(tools)
        for token in tokens:
            yield matcher.allowed()
            matcher.take(token)

    return compiled, walk


def xgrammar(tokenizer: Any, tools: str, end: int) -> tuple[float, Walk]:
    import xgrammar as xgr

    began = time.perf_counter()
    info = xgr.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer), stop_token_ids=[end])
    compiler = xgr.GrammarCompiler(info)
    ways = []
    for each in json.loads(tools):
        function = each["function"]
        schema = xgr.Grammar.from_json_schema(json.dumps(function["parameters"]), any_whitespace=False)
        ways.append(xgr.Grammar.concat(xgr.Grammar.from_ebnf(f'root ::= "{function["name"]} "'), schema))
    grammar = compiler.compile_grammar(xgr.Grammar.union(*ways))
    compiled = time.perf_counter() - began

    def walk(tokens: Sequence[int]) -> Masks:
        matcher, bits = xgr.GrammarMatcher(grammar), xgr.allocate_token_bitmask(1, len(tokenizer))
        for token in tokens:
            matcher.fill_next_token_bitmask(bits)
            flat = np.unpackbits(bits.numpy().view(np.uint8), bitorder="little")
            yield flat[: len(tokenizer)].astype(np.bool_)
            matcher.accept_token(token)

    return compiled, walk


def outlines_core(tokenizer: Any, tools: str, end: int) -> tuple[float, Walk]:
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(other)}
    began = time.perf_counter()
    spelt: dict[bytes, list[int]] = {}
    for text, number in tokenizer.get_vocab().items():
        if number != end and not text.startswith("<|"):
            spelt.setdefault(bytes(letters[letter] for letter in text), []).append(number)
    vocabulary = Vocabulary(end, spelt)
    ways = [
        f"{each['function']['name']} {build_regex_from_schema(json.dumps(each['function']['parameters']))}"
        for each in json.loads(tools)
    ]
    index = Index("|".join(f"({way})" for way in ways), vocabulary)
    compiled = time.perf_counter() - began

    def walk(tokens: Sequence[int]) -> Masks:
        guide = Guide(index)
        for token in tokens:
            mask = np.zeros(len(tokenizer), np.bool_)
            mask[guide.get_tokens()] = True
            yield mask
            guide.advance(token)

    return compiled, walk


def measure(
    make: Callable[[Any, str, int], tuple[float, Walk]], tokenizer: Any, tools: str, rows: Any
) -> dict[str, Any]:
    try:
        compiled, walk = make(tokenizer, tools, token_id(tokenizer, END))
    except ImportError as error:
        return {"left out": str(error)}
    steps, refused = [], 0
    for tokens in rows:
        began = time.perf_counter()
        masks = list(walk(tokens))
        steps.append((time.perf_counter() - began) / len(tokens))
        refused += sum(not mask[token] for mask, token in zip(masks, tokens, strict=True))
    return {
        "compile_ms": round(1e3 * compiled, 1),
        "step_us": round(1e6 * statistics.median(steps), 1),
        "tokens_refused": refused,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=200)
    given = parser.parse_args()
    chance = random.Random(0)
    texts = [call(chance) for _ in range(given.calls)]
    tools = Toolbox([*map(tool, NAMES), ANSWER_TOOL]).text
    tokenizer = train_tokenizer(texts, [], 1200)
    rows = [encode_plain(tokenizer, text) for text in texts]
    figures = {make.__name__: measure(make, tokenizer, tools, rows) for make in (ours, xgrammar, outlines_core)}
    base = figures["ours"]["step_us"]
    ratios = {name: round(row["step_us"] / base, 2) for name, row in figures.items() if "step_us" in row}
    print(json.dumps({"vocabulary": len(tokenizer), "figures": figures, "step_us beside ours": ratios}, indent=2))


if __name__ == "__main__":
    main()
