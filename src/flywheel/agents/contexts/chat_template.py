"""A context in the language that a pretrained model was tuned on: its chat template.

What an agent was told are the messages and tools that came, as they came; what has no messages, as the view of a text
world, is said by a user. The agent's own words are the assistant's, and rows teach nothing else: an answer begins where
the template's generation prompt ends, and ends with the token that ends a turn. Both are found as differences between
what the template writes of a conversation and of its prefix.

A template that writes earlier turns otherwise once later ones stand behind them, as those that drop reasoning, has no
such prefixes: each of its answers is then learned in a row of its own, behind what would be read before it in play.

Text is data: where a message spells a special token, the letters are read, not the token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from flywheel.agents.contexts.call_format import CallFormat
from flywheel.agents.contexts.prompts import (
    ACT,
    DOCUMENT,
    DONE,
    FEEDBACK,
    IN_VIEW,
    OUTCOME,
    PAST,
    ROUTES,
    SUBGOAL,
    TASK,
    VIEW,
    Piece,
)
from flywheel.environments.tools import names_of
from flywheel.errors import PolicyError
from flywheel.messages import Message, action_of, answer_of_action, openai_message, text_of_inputs
from flywheel.text import with_strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADINGS = {
    TASK: "Task: ",
    DOCUMENT: "Document: ",
    ROUTES: "Ways: ",
    PAST: "So far: ",
    VIEW: "",
    IN_VIEW: "In view: ",
    FEEDBACK: "",
    OUTCOME: "The subgoal ended: ",
}
"""What stands before a text in a user's message."""
SUBGOAL_LINE = "Subgoal: {}"
DONE_TEXT = "<subgoal done>"
"""What an executor says instead of an action when its subgoal is done."""
_MASK = 0xF0000
"""Of Unicode's private use: stands for what spells a special token while a template is rendered."""
_NAME, _OTHER = "flywheel_probe_a", "flywheel_probe_b"
_PROBE = '{"place": "there"}'
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Probe.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
    for name in (_NAME, _OTHER)
]
MOST_KNOWN = 50_000
"""Texts whose tokens are remembered."""
Json = dict[str, Any]
Span = tuple[str, float]
"""(text, its weight as a target)."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A message of a conversation, and how much it counts as a target; None for what is not the agent's own."""

    message: Json
    weight: float | None = None


class ChatTemplate:
    """Implements `contexts.language.Language`. Raises `PolicyError`, in one line, for a template that cannot do it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise PolicyError("the base has no chat template; name a file with one: student.chat_template")
        self._tokenizer = tokenizer
        spellings = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
        self._masked = {spelling: chr(_MASK + place) for place, spelling in enumerate(spellings)}
        self._spelt = {mask: spelling for spelling, mask in self._masked.items()}
        self._spelling = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        self._mask = re.compile(f"([{''.join(self._spelt)}])" if self._spelt else r"(?!)")
        self._known: dict[str, list[int]] = {}
        self.end, self._end_text = self._end()

    # -- contexts as tokens ----------------------------------------------------------------------------------------

    def rows(self, pieces: Sequence[Piece], weigh: Callable[[Piece], float]) -> list[tuple[list[int], list[float]]]:
        rows = []
        for spans in self._documents(*_conversation(pieces, weigh), open_end=False):
            ids: list[int] = []
            weights: list[float] = []
            for text, weight in spans:
                tokens = self._ids(text)
                ids += tokens
                weights += [weight] * len(tokens)
            if any(weights):
                rows.append((ids, weights))
        return rows

    def prompt(self, pieces: Sequence[Piece], cue: str) -> list[int]:
        *_, spans = self._documents(*_conversation(pieces, lambda piece: 0.0), open_end=True)
        return [token for text, _ in spans for token in self._ids(text)]

    def options(self, offered: Sequence[str], *, may_end: bool) -> list[list[int]]:
        return [self._ids(self._plain(text) + self._end_text) for text in [*offered, *([DONE_TEXT] * may_end)]]

    # -- tokens as answers -----------------------------------------------------------------------------------------

    def never(self, *, may_end: bool) -> list[int]:
        form = self._calls if isinstance(self._calls, CallFormat) else None
        spelt = f"{form.before}{form.between}{form.after}{form.separator}" if form else ""
        special = zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True)
        return [token for spelling, token in special if token != self.end and spelling not in spelt]

    def only_first(self, *, may_end: bool) -> int | None:
        return None

    def done_text(self, *, may_end: bool) -> str:
        return DONE_TEXT if may_end else ""

    def call_format(self) -> CallFormat:
        """How the template writes tool calls. Raises `PolicyError` where it shows no tools, or writes otherwise."""
        if isinstance(self._calls, str):
            raise PolicyError(self._calls)
        return self._calls

    def action(self, tokens: Sequence[int]) -> str | None:
        text = str(self._tokenizer.decode(list(tokens)))
        if text.strip() == DONE_TEXT:
            return None
        calls = self._calls.calls(text) if isinstance(self._calls, CallFormat) else ()
        return action_of(Message("assistant", tool_calls=calls)) if calls else text

    # -- what the template is like ---------------------------------------------------------------------------------

    def _end(self) -> tuple[int, str]:
        """The token that ends an assistant's turn, and its spelling."""
        text = self._answer([{"role": "assistant", "content": "Done"}], [])
        behind = self._tokenizer.encode(text.partition("Done")[2], add_special_tokens=False)
        special = [token for token in behind if token in self._tokenizer.all_special_ids]
        if not special:
            raise PolicyError("the chat template ends an answer with no special token: nothing would stop it")
        return special[0], str(self._tokenizer.convert_ids_to_tokens(special[0]))

    @cached_property
    def _calls(self) -> CallFormat | str:
        """How the template writes tool calls, read off what it writes of one and of two; or why students cannot."""
        try:
            if _NAME not in self._render([{"role": "user", "content": "Go."}], _TOOLS, prompt=True):
                return (
                    "the chat template does not show an agent its tools; take another base, or name a file with a "
                    "template that does: student.chat_template"
                )
            one_call = self._answer([_called(_NAME)], _TOOLS).partition(self._end_text)[0]
        except PolicyError as error:
            return str(error)
        form = re.fullmatch(rf"(.*?){_NAME}(.*?)\{{\s*\"place\"\s*:\s*\"there\"\s*\}}(.*)", one_call, re.DOTALL)
        if form is None:
            return (
                "the chat template does not write a tool call as its name and then its arguments in JSON; students "
                "cannot learn from it"
            )
        before, between, after = form.groups()
        try:
            two_calls = self._answer([_called(_NAME, _OTHER)], _TOOLS).partition(self._end_text)[0]
        except PolicyError:  # some take one call an answer
            two_calls = ""
        middle = re.fullmatch(
            rf"{re.escape(before + _NAME + between)}\{{[^}}]*\}}(.*?){_OTHER}{re.escape(between)}\{{[^}}]*\}}"
            rf"{re.escape(after)}",
            two_calls,
            re.DOTALL,
        )
        return CallFormat(before, between, after, middle[1] if middle else None)

    @cached_property
    def _line_role(self) -> str:
        """Who says the subgoal in the middle of a conversation: the system, where the template lets it."""
        talk = [("system", "Act."), ("user", "Go."), ("assistant", "Yes."), ("system", _NAME)]
        messages = [{"role": role, "content": text} for role, text in talk]
        try:
            shown = self._render(messages, [], prompt=True)
        except PolicyError:
            return "user"
        return "system" if _NAME in shown and shown.index(_NAME) > shown.index("Yes.") else "user"

    # -- rendering -------------------------------------------------------------------------------------------------

    def _documents(self, conversation: Sequence[_Entry], tools: str, *, open_end: bool) -> Iterator[list[Span]]:
        """A conversation as runs of spans. A run goes on as long as what stood there stays as it is; the last one ends
        with the prompt for the next answer where the conversation has an `open_end`."""
        listed = with_strings(json.loads(tools), self._plain) if tools else []
        if listed:
            self.call_format()
        before: list[Json] = []
        written, spans = "", list[Span]()
        for entry in conversation:
            message = with_strings(entry.message, self._plain)
            if entry.message["role"] == SUBGOAL:
                message["role"] = self._line_role
                if self._line_role == before[-1]["role"]:
                    message["content"] = f"{before.pop()['content']}\n{message['content']}"
            if entry.weight is None:
                before.append(message)
                continue
            prompt = self._render(before, listed, prompt=True)
            if not prompt.startswith(written) or not spans:
                if spans:
                    yield spans
                written, spans = "", []
            before.append(message)
            words, end, _ = self._answer(before, listed, prompt).partition(self._end_text)
            if not end:
                raise PolicyError(f"the chat template does not end every answer with {self._end_text}")
            words += end
            spans += [(prompt[len(written) :], 0.0), (words, entry.weight)]
            written = prompt + words
        if open_end:
            prompt = self._render(before, listed, prompt=True)
            if not prompt.startswith(written):
                written, spans = "", []
            spans.append((prompt[len(written) :], 0.0))
        yield spans

    def _answer(self, messages: Sequence[Json], tools: Sequence[Json], prompt: str | None = None) -> str:
        """What the template writes of the last message, the assistant's, behind the prompt for it."""
        if prompt is None:
            messages = [{"role": "user", "content": "Go."}, *messages]
            prompt = self._render(messages[:-1], tools, prompt=True)
        whole = self._render(messages, tools, prompt=False)
        if not whole.startswith(prompt):
            raise PolicyError(
                "the chat template writes an answer otherwise than behind its own generation prompt: what is learned "
                "would not be what is asked; take a template without that (student.chat_template)"
            )
        return whole[len(prompt) :]

    def _render(self, messages: Sequence[Json], tools: Sequence[Json], *, prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    enable_thinking=False,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PolicyError(f"the chat template cannot write this conversation: {reason}") from error

    def _plain(self, text: str) -> str:
        """A text that spells no special token."""
        return self._spelling.sub(lambda match: self._masked[match.group()], text)

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[text] = [token for part in self._mask.split(text) for token in self._encoded(part)]
        return self._known[text]

    def _encoded(self, part: str) -> list[int]:
        """A special token that a message spells is read letter by letter: its first one apart from the rest."""
        spelt = self._spelt.get(part)
        parts = [part] if spelt is None else [spelt[:1], spelt[1:]]
        return [token for text in parts for token in self._tokenizer.encode(text, add_special_tokens=False)]


def _conversation(pieces: Sequence[Piece], weigh: Callable[[Piece], float]) -> tuple[list[_Entry], str]:
    """The messages of a window, and the tools that come with them."""
    tools = next((piece.tools for piece in pieces if piece.tools), "")
    names = names_of(tools) if tools else []
    entries: list[_Entry] = []
    text = ""
    answers, marker = 0, ""
    for piece in pieces:
        if piece.own:
            entries, text = _with_user(entries, text), ""
            message, whole = _template_message(_answer(piece, marker, names, answers))
            entries.append(_Entry(message, weigh(piece) if piece.target and whole else 0.0))
            answers += 1
        elif piece.messages:
            entries, text = _with_user(entries, text), ""
            entries += [_Entry(_template_message(message)[0]) for message in piece.messages]
        elif marker == SUBGOAL and piece.ends:
            entries, text = _with_user(entries, text), ""
            entries.append(_Entry({"role": SUBGOAL, "content": SUBGOAL_LINE.format(piece.text)}))
        elif piece.marker in HEADINGS and (piece.text or piece.marker in (ROUTES, PAST)):
            text += f"\n{HEADINGS[piece.marker]}{piece.text}" if text else f"{HEADINGS[piece.marker]}{piece.text}"
        elif piece.text:
            text += f" {piece.text}"
        marker = piece.marker
    return _with_user(entries, text), tools


def _answer(piece: Piece, marker: str, tools: Sequence[str], number: int) -> Message:
    """The agent's own words as a message; `marker`: the one before them, `number`: how many answers there were."""
    if piece.marker == DONE:
        return Message("assistant", DONE_TEXT)
    return answer_of_action(piece.text, tools, number) if marker == ACT else Message("assistant", piece.text)


def _with_user(entries: list[_Entry], text: str) -> list[_Entry]:
    return [*entries, _Entry({"role": "user", "content": text})] if text else entries


def _template_message(message: Message) -> tuple[Json, bool]:
    """A message as templates read it, whose arguments are objects; is it whole? Calls whose arguments are no JSON
    object, as one cut off in the middle, stay text and teach nobody."""
    written, whole = openai_message(message) | {"content": text_of_inputs([message])}, True
    written.pop("reasoning_content", None)
    if written["role"] == "developer":
        written["role"] = "system"
    for call in written.get("tool_calls", ()):
        try:
            arguments = json.loads(call["function"]["arguments"] or "{}")
        except (ValueError, RecursionError):
            arguments = None
        whole = whole and isinstance(arguments, dict)
        call["function"]["arguments"] = arguments if isinstance(arguments, dict) else call["function"]["arguments"]
    return written, whole


def _called(*names: str) -> Json:
    return _template_message(answer_of_action("\n".join(f"{name} {_PROBE}" for name in names), names, 0))[0]
