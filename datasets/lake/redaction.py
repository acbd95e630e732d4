"""Secrets and personal data in text, found and replaced before anything is written, in every column that holds text.

The rules are `secret_rules`; a few services more by detect-secrets' own patterns. What was found is counted, never
kept. Images are not read.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.lake.secret_rules import OPTIONAL, RULES, Check

IDS = frozenset({"trajectory_id", "sha256"})
"""Digests of ours, and ids that an import has looked at: they name rows and files."""
MESSAGE_COLUMNS = ("inputs", "output", "final_inputs")
NAMES = frozenset(
    {
        "environment",
        "parameters",
        "split",
        "task_id",
        "task_group",
        "task_name",
        "family",
        "policy",
        "policy_id",
        "policy_version",
        "parent_policy_id",
        "config_digest",
        "purpose",
        "stop_reason",
        "state_key",
        "final_state_key",
        "subject",
        "origin",
        "origin_by",
        "screenshot",
        "media_type",
        "verifier",
        "version",
        "arguments",
        "route",
        "source",
        "level",
        "method",
        "role",
        "draw",
        "model",
        "actions",
        "record",
        "essential",
        "duplicate_of",
        "parent_trajectory_id",
        "tool_calls.id",
        "tool_calls.name",
        *(f"{column}.{field}" for column in MESSAGE_COLUMNS for field in ("role", "tool_call_id", "name")),
    }
)
"""Columns of names and digests, those in structures with the structure's name: they are held against the keys of
services, not against numbers and addresses, which a digest may look like."""
JSON = frozenset(
    {"extra", "raw", "claims", "tools", "tool_calls.arguments", *(f"{column}.parts" for column in MESSAGE_COLUMNS)}
)
"""Columns that hold JSON."""
_Pattern = tuple[str, re.Pattern[str], Check | None, tuple[str, ...]]
"""(kind, pattern, check, signs without which it is not tried)."""
Clean = Callable[[str, Counter[str]], str]
Naming = Callable[[str, str], str]
"""(kind, secret) → what stands in its place; it begins with `MARK`."""
SERVICES = ("discord.DiscordBotTokenDetector", "mailchimp.MailchimpDetector", "square_oauth.SquareOAuthDetector")
"""detect-secrets' plugins for what the rules do not name."""
PERSONAL = frozenset({"e-mail address", "card number"})


def _suspect(digit: str, letter: str) -> tuple[str, str]:
    """What a text must hold to be looked at: for the rules, and for the optional ones too."""
    rules = (
        rf"[A-Za-z0-9_+/-]{{16}}|@|PRIVATE KEY|[{digit}]{{13}}|[{digit}]{{4}}[^{letter}{digit}]{{1,3}}[{digit}]{{4}}"
        r"|(?i:bearer|basic|passw|passphrase|pwd|secret)"
    )
    return rules, rf"{rules}|[{digit}]{{3}}|[A-Z]{{2}}[{digit}]{{2}}"


_SUSPECT = _suspect(r"\p{Nd}", r"\p{L}")
"""One linear scan clears most text: every secret holds a long run of letters and digits, an @, many digits, or is
announced by a word."""
_SUSPECT_ASCII = _suspect("0-9", "A-Za-z")
"""The same for text in ASCII, ten times as fast: RE2 builds the tables of Unicode's classes anew in each call."""
_SUSPECT_NAME = (
    r"[A-Za-z0-9]{2,}[_-][A-Za-z0-9_-]{16}|A(?:KI|SI|BI|CC)A|AIza|ey[JI]|SG\.|SK[a-f0-9]|dapi|-us\d|://|:AA|PRIVATE"
    r"|(?i:bearer|passw|pwd|secret|(?:account|sharedaccess)key)"
)
LARGE_BYTES = 1 << 18
SHORTEST = 6
"""Letters of a secret; a shorter group of a pattern is a prefix of it."""
MARK = "[REDACTED:"
_ESCAPED = "nrtbf"
"""Behind a backslash they are the escapes of JSON, and no part of what follows."""


def redacted(tables: Iterable[pa.Table], redactions: Counter[str], also: Collection[str] = ()) -> Iterator[pa.Table]:
    """The tables with secrets in their text replaced by `[REDACTED:what]`; counts by kind are added to `redactions`.

    `also`: optional kinds to look for, as `phone number` and `iban`.
    """
    for table in tables:
        read = [name for name in table.column_names if name not in IDS and holds_text(table.schema.field(name).type)]
        flat = {name: table[name] for name in read if pa.types.is_string(table.schema.field(name).type)}
        suspects = _suspects(flat, also)
        for name in read:
            if name in flat:
                column = _cleaned_texts(name, table[name], suspects[name], redactions, also)
            else:
                column = _cleaned_column(name, table[name], redactions, also)
            if column is not None:
                number = table.column_names.index(name)
                table = table.set_column(number, table.schema.field(number), column)
        yield table


def holds_text(kind: pa.DataType) -> bool:
    """Is it a type of text, or of lists or structs of it?"""
    if pa.types.is_list(kind):
        return holds_text(kind.value_type)
    if pa.types.is_struct(kind):
        return any(holds_text(field.type) for field in kind)
    return bool(pa.types.is_string(kind))


def text_columns() -> list[tuple[str, str]]:
    """(kind of file, column) of all that is read for secrets."""
    return [
        (kind, field.name)
        for kind, schema in ARROW_SCHEMAS.items()
        for field in schema
        if field.name not in IDS and holds_text(field.type)
    ]


def redact(text: str, redactions: Counter[str], also: Collection[str] = ()) -> str:
    """One text without its secrets."""
    return _redacted(text, _counted(redactions), _patterns(frozenset(also)))


def replace_secrets(text: str, name: Naming, also: Collection[str] = (), more: Sequence[str] = ()) -> str:
    """One text with its secrets under other names. `more`: regular expressions of what else is private."""
    own: list[_Pattern] = [("private", re.compile(pattern), None, ()) for pattern in more]
    return _redacted(text, name, [*own, *_patterns(frozenset(also))])


def _redact_name(text: str, redactions: Counter[str]) -> str:
    """A name or digest without the keys of services."""
    return _redacted(text, _counted(redactions), _patterns(None))


def _counted(redactions: Counter[str]) -> Naming:
    def name(kind: str, secret: str) -> str:
        redactions[kind] += 1
        return f"{MARK}{kind}]"

    return name


def _redacted(text: str, name: Naming, patterns: Sequence[_Pattern]) -> str:
    lowered = text.lower()
    for kind, pattern, check, signs in patterns:
        if not signs or any(sign in lowered for sign in signs):
            text = pattern.sub(partial(_replace, kind, check, name), text)
    return text


def _cleaner(name: str, also: Collection[str]) -> Clean:
    if name in NAMES:
        return _redact_name
    return partial(redact_json if name in JSON else redact, also=also)


def redact_json(text: str, redactions: Counter[str], also: Collection[str] = ()) -> str:
    """A JSON text whose strings have no secrets; what is no JSON is read as text."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return redact(text, redactions, also)
    before = redactions.total()
    clean = _cleaned(whole, redactions, also)
    return text if redactions.total() == before else json.dumps(clean, ensure_ascii=False)


def _cleaned(value: Any, redactions: Counter[str], also: Collection[str]) -> Any:
    if isinstance(value, str):
        return redact(value, redactions, also)
    if isinstance(value, list):
        return [_cleaned(inner, redactions, also) for inner in value]
    if isinstance(value, dict):
        return {
            redact(name, redactions, also): _cleaned_field(name, inner, redactions, also)
            for name, inner in value.items()
        }
    return value


def _cleaned_field(name: str, value: Any, redactions: Counter[str], also: Collection[str]) -> Any:
    """A value under a name that may say what it is, as `password`."""
    if not isinstance(value, str):
        return _cleaned(value, redactions, also)
    counts = Counter[str]()
    whole = redact(f'"{name}": "{value}"', counts, also) if '"' not in value and "\\" not in value else ""
    head, tail = f'"{name}": "', '"'
    if counts and whole.startswith(head) and whole.endswith(tail):
        redactions += counts
        return whole[len(head) : -len(tail)]
    return redact(value, redactions, also)


def _suspects(columns: Mapping[str, pa.ChunkedArray], also: Collection[str]) -> dict[str, set[str]]:
    """Of each column of text, what may hold a secret. Small columns are scanned together, as RE2 compiles its pattern
    anew for each array; large ones alone, as joining copies them."""
    suspects: dict[str, set[str]] = {name: set() for name in columns}
    names = {name: [column.unique()] for name, column in columns.items() if name in NAMES}
    texts = {name: column.chunks for name, column in columns.items() if name not in NAMES}
    large = [name for name in texts if columns[name].nbytes > LARGE_BYTES]
    for group in (names, *({name: [part]} for name in large for part in texts.pop(name)), texts):
        if not group:
            continue
        parts = [part for chunks in group.values() for part in chunks]
        whole = parts[0] if len(parts) == 1 else pa.concat_arrays([pa.array([], pa.string()), *parts])
        rules = (_SUSPECT_ASCII if _is_ascii(whole) else _SUSPECT)[bool(also)]
        rows = pc.indices_nonzero(pc.match_substring_regex(whole, _SUSPECT_NAME if group is names else rules))
        owners, ends = list(group), list(accumulate(sum(map(len, chunks)) for chunks in group.values()))
        for row, text in zip(rows.to_pylist(), whole.take(rows).to_pylist(), strict=True):
            suspects[owners[bisect_right(ends, row)]].add(text)
    return suspects


def _is_ascii(texts: pa.StringArray) -> bool:
    letters = texts.buffers()[2]
    return letters is None or bool(np.frombuffer(letters, np.int8).min(initial=0) >= 0)


def _cleaned_column(
    name: str, column: pa.ChunkedArray, redactions: Counter[str], also: Collection[str]
) -> pa.ChunkedArray | None:
    """A column of texts, or of lists or structs of them, without its secrets; None where it has none."""
    if column.null_count == len(column):
        return None
    if pa.types.is_struct(column.type):
        whole, before, last = column.combine_chunks(), redactions.total(), name.rpartition(".")[2]
        parts = [pa.chunked_array([part], part.type) for part in whole.flatten()]
        texts = [
            _cleaned_column(f"{last}.{field.name}", part, redactions, also) if holds_text(part.type) else None
            for field, part in zip(column.type, parts, strict=True)
        ]
        if redactions.total() == before:
            return None
        cleaned = [(old if new is None else new).combine_chunks() for old, new in zip(parts, texts, strict=True)]
        absent = pc.is_null(whole)
        return pa.chunked_array(
            [pa.StructArray.from_arrays(cleaned, fields=list(column.type), mask=absent)], column.type
        )
    if pa.types.is_list(column.type):
        whole = column.combine_chunks()
        values = _cleaned_column(name, pa.chunked_array([whole.flatten()], column.type.value_type), redactions, also)
        if values is None:
            return None
        offsets = pc.cumulative_sum(pc.fill_null(pc.list_value_length(whole), 0))
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), offsets])
        return pa.chunked_array(
            [pa.ListArray.from_arrays(offsets, values.combine_chunks(), mask=pc.is_null(whole))], column.type
        )
    return _cleaned_texts(name, column, _suspects({name: column}, also)[name], redactions, also)


def _cleaned_texts(
    name: str, column: pa.ChunkedArray, suspects: Collection[str], redactions: Counter[str], also: Collection[str]
) -> pa.ChunkedArray | None:
    clean = _cleaner(name, also)
    secrets = {text for text in suspects if clean(text, Counter()) != text}
    if not secrets:
        return None
    values = [clean(text, redactions) if text in secrets else text for text in column.to_pylist()]
    return pa.chunked_array([pa.array(values, column.type)])


def _replace(kind: str, check: Check | None, name: Naming, match: re.Match[str]) -> str:
    """Where a group of a pattern holds the secret, what stands around it is kept."""
    if MARK in match[0] or (check and not check(match)):
        return match[0]
    secret = match.span(1) if match.re.groups == 1 and len(match[1] or "") >= SHORTEST else match.span()
    if check and match.re.groups == 1:
        secret = match.span(1)
    start, end = secret[0] - match.start(), secret[1] - match.start()
    if match.string[: secret[0]][-1:] == "\\" and match.string[secret[0]] in _ESCAPED:
        start += 1
    return f"{match[0][:start]}{name(kind, match[0][start:end])}{match[0][end:]}"


@cache
def _patterns(also: frozenset[str] | None) -> list[_Pattern]:
    """Of all rules and those optional ones; for None, those for keys alone."""
    from importlib import import_module

    rules = [*RULES, *(rule for rule in OPTIONAL if rule.kind in (also or ()))]
    kept = [rule for rule in rules if also is not None or rule.kind not in PERSONAL]
    patterns: list[_Pattern] = [(rule.kind, re.compile(rule.pattern), rule.check, rule.signs) for rule in kept]
    for service in SERVICES:
        module, _, name = service.partition(".")
        plugin = getattr(import_module(f"detect_secrets.plugins.{module}"), name)
        kind = plugin.secret_type.lower()
        patterns += [(kind, re.compile(form.pattern, form.flags), None, ()) for form in plugin.denylist]
    return patterns
