"""Tool calls as a grammar: what a student may write is what a tool's schema allows.

llguidance (https://github.com/guidance-ai/llguidance) computes the tokens that may come next. Separators are those of
compact JSON, or one blank wider, which is how models write it.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from flywheel.environments.tools import ANSWER
from flywheel.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
MOST = 64
"""Sets of tools whose grammars are kept."""


@lru_cache(MOST)
def tool_grammar(tools: str, *, must_call: bool = False) -> str:
    """The Lark grammar of one call or several, a line each: `name arguments`. `tools`: JSON in OpenAI's form.

    Where none of them is the tool that answers, and none must be called, the agent may also say something: any text
    that does not begin as a call of theirs.
    """
    functions = [tool["function"] for tool in json.loads(tools)]
    if not functions:
        return "start: TEXT\nTEXT: /(?s:.+)/\n"
    ways = [
        f"{json.dumps(function['name'] + ' ')} %json {json.dumps({**_schema(function), 'x-guidance': SPACING})}"
        for function in functions
    ]
    rules = 'calls: call ("\\n" call)*\ncall: ' + " | ".join(ways) + "\n"
    names = [function["name"] for function in functions]
    if must_call or ANSWER in names:
        return f"start: calls\n{rules}"
    called = "|".join(re.escape(name).replace("/", r"\/") for name in names)
    text = rf"TEXT: /(?s:.+)/ & ~/(?s:({called}) \{{.*)/"
    return f"start: calls | TEXT\n{rules}{text}\n"


def _schema(function: dict[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    return {"type": "object", **(function.get("parameters") or {})}


class Grammars:
    """The grammars of a tokenizer's language. `end`: the token that ends a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, end: int) -> None:
        self._size = len(tokenizer)
        self._tokenizer = LLTokenizer(tokenizer.backend_tokenizer.to_str(), n_vocab=self._size, eos_token=end)
        self._known: dict[str, LLMatcher] = {}

    def matcher(self, grammar: str) -> Matcher:
        """A fresh one. Raises `ConfigError` for a schema that no grammar can be made of."""
        if grammar not in self._known:
            if len(self._known) >= MOST:
                self._known.clear()
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
            if problem := matcher.get_error():
                raise ConfigError(f"the tools' schemas cannot guide a student: {' '.join(problem.split())[:200]}")
            self._known[grammar] = matcher
        return Matcher(self._known[grammar].deep_copy(), self._size)


class Matcher:
    """Where one text has got to in its grammar."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher, self._size = matcher, size

    def allowed(self) -> NDArray[np.bool_]:
        """(V,): may the token come next?"""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._size].astype(np.bool_)

    @property
    def is_whole(self) -> bool:
        """May the text end here?"""
        return bool(self._matcher.is_accepting())

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
