"""Tool calls as a grammar: what a student may write is what a tool's schema allows.

llguidance (https://github.com/guidance-ai/llguidance) computes the tokens that may come next. Separators are those of
compact JSON, or one blank wider, which is how models write it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from flywheel.agents.contexts.call_format import MARKED_CALLS, CallFormat
from flywheel.environments.tools import ANSWER
from flywheel.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
MOST = 64
"""Sets of tools whose grammars are kept."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What an answer may be: calls of `tools` (JSON in OpenAI's form) and, unless one must be made, text, which is JSON
    that fits `answer_schema` (a JSON Schema) where there is one."""

    tools: str
    must_call: bool = False
    answer_schema: str = ""


def tool_grammar(
    allowed: Allowed,
    form: CallFormat = MARKED_CALLS,
    done: str = "",
    literal: Callable[[str], str] = json.dumps,
) -> str:
    """The Lark grammar of one call or several, or of text.

    Where none of the tools is the one that answers, and none must be called, the agent may also say something: any text
    that does not begin as a call of theirs. `done`: a text that may always stand instead. `literal` spells a text in
    Lark.
    """
    functions = [tool["function"] for tool in json.loads(allowed.tools)]
    names = [function["name"] for function in functions]
    rules, ways = "", list[str]()
    if functions:
        calls = [
            f"{literal(name + form.between)} %json {json.dumps({**_schema(function), 'x-guidance': SPACING})}"
            for name, function in zip(names, functions, strict=True)
        ]
        more = f" ({literal(form.separator)} call)*" if form.separator is not None else ""
        ends = [literal(text) if text else "" for text in (form.before, form.after)]
        rules, ways = f"calls: {ends[0]} call{more} {ends[1]}\ncall: {' | '.join(calls)}\n", ["calls"]
    if done:
        ways.append(literal(done))
    if allowed.answer_schema and not (functions and allowed.must_call):
        rules += f"json_answer: %json {json.dumps({**json.loads(allowed.answer_schema), 'x-guidance': SPACING})}\n"
        ways.append("json_answer")
    elif not (functions and (allowed.must_call or ANSWER in names)):
        begun = "|".join(map(_pattern, form.begins(names))) if functions else ""
        rules += "TEXT: /(?s:.+)/" + (rf" & ~/(?s:({begun}).*)/" if begun else "") + "\n"
        ways.append("TEXT")
    return f"start: {' | '.join(ways)}\n{rules}"


def _pattern(text: str) -> str:
    """A regular expression, within slashes, of one text."""
    return re.escape(text).replace("\\\n", r"\n").replace("/", r"\/")


def _schema(function: dict[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    return {"type": "object", **(function.get("parameters") or {})}


class Grammars:
    """The grammars of a tokenizer's language. `end`: the token that ends a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, end: int, form: Callable[[], CallFormat]) -> None:
        self._size = len(tokenizer)
        self._special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self._spelling = re.compile("(" + "|".join(map(re.escape, self._special)) + ")")
        self._tokenizer = LLTokenizer(tokenizer.backend_tokenizer.to_str(), n_vocab=self._size, eos_token=end)
        self._form = form
        self._known: dict[tuple[Allowed, str], LLMatcher] = {}

    def matcher(self, allowed: Allowed, done: str = "") -> Matcher:
        """A fresh one. Raises `ConfigError` for a schema that no grammar can be made of."""
        if (allowed, done) not in self._known:
            if len(self._known) >= MOST:
                self._known.clear()
            grammar = tool_grammar(allowed, self._form(), done, self._literal)
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
            if problem := matcher.get_error():
                raise ConfigError(f"the schemas cannot guide a student: {' '.join(problem.split())[:200]}")
            self._known[allowed, done] = matcher
        return Matcher(self._known[allowed, done].deep_copy(), self._size)

    def _literal(self, text: str) -> str:
        """A text in Lark, its special tokens by their numbers."""
        parts = [part for part in self._spelling.split(text) if part]
        return " ".join(f"<[{self._special[part]}]>" if part in self._special else json.dumps(part) for part in parts)


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
