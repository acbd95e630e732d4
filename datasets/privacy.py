"""Secrets and personal data in text, found and replaced before anything is written, in every column that holds text.

The rules are `secret_rules`; a few services more by detect-secrets' own patterns. What was found is counted, never
kept. Images are not read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.secret_rules import OPTIONAL, RULES, Check

IDS = frozenset({"trajectory_id", "sha256"})
"""Digests of ours, and ids that an import has looked at: they name rows and files."""
NAMES = frozenset(
    {
        "environment",
        "parameters",
        "split",
        "task_id",
        "task_group",
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
    }
)
"""Columns of names and digests: they are held against the keys of services, not against numbers and addresses, which a
digest may look like."""
JSON = frozenset({"extra", "raw", "claims"})
"""Columns that hold JSON."""
_Pattern = tuple[str, re.Pattern[str], Check | None, tuple[str, ...]]
"""(kind, pattern, check, signs without which it is not tried)."""
Clean = Callable[[str, Counter[str]], str]
Suspects = tuple[str, str]
"""A pattern for text in ASCII and one for all text."""
SERVICES = ("discord.DiscordBotTokenDetector", "mailchimp.MailchimpDetector", "square_oauth.SquareOAuthDetector")
"""detect-secrets' plugins for what the rules do not name."""
PERSONAL = frozenset({"e-mail address", "card number"})


def _suspect(digit: str, letter: str) -> tuple[str, str]:
    """What a text must hold to be looked at: for the rules, and for the optional ones too."""
    rules = (
        rf"[A-Za-z0-9_+/-]{{16}}|@|＠|PRIVATE KEY|[{digit}]{{13}}|[{digit}]{{4}}[^{letter}{digit}][{digit}]{{4}}"
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
SHORTEST = 6
"""Letters of a secret; a shorter group of a pattern is a prefix of it."""
MARK = "[REDACTED:"


def redacted(tables: Iterable[pa.Table], found: Counter[str], also: Collection[str] = ()) -> Iterator[pa.Table]:
    """The tables with secrets in their text replaced by `[REDACTED:what]`; counts by kind are added to `found`.

    `also`: optional kinds to look for, as `phone number` and `iban`.
    """
    for table in tables:
        for number, name in enumerate(table.column_names):
            if name not in IDS and holds_text(table.schema.field(number).type):
                column = _column(table[name], found, _cleaner(name, also), _suspects(name, also))
                if column is not None:
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


def redact(text: str, found: Counter[str], also: Collection[str] = ()) -> str:
    """One text without its secrets."""
    return _redacted(text, found, _patterns(frozenset(also)))


def _redact_name(text: str, found: Counter[str]) -> str:
    """A name or digest without the keys of services."""
    return _redacted(text, found, _patterns(None))


def _redacted(text: str, found: Counter[str], patterns: Sequence[_Pattern]) -> str:
    lowered = text.lower()
    for kind, pattern, check, signs in patterns:
        if not signs or any(sign in lowered for sign in signs):
            text = pattern.sub(partial(_replace, kind, check, found), text)
    return text


def _cleaner(name: str, also: Collection[str]) -> Clean:
    if name in NAMES:
        return _redact_name
    return partial(redact_json if name in JSON else redact, also=also)


def _suspects(name: str, also: Collection[str]) -> Suspects:
    """What a text of a column must hold to be looked at."""
    return (_SUSPECT_NAME, _SUSPECT_NAME) if name in NAMES else (_SUSPECT_ASCII[bool(also)], _SUSPECT[bool(also)])


def redact_json(text: str, found: Counter[str], also: Collection[str] = ()) -> str:
    """A JSON text whose strings have no secrets; what is no JSON is read as text."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return redact(text, found, also)
    before = found.total()
    clean = _cleaned(whole, found, also)
    return text if found.total() == before else json.dumps(clean, ensure_ascii=False)


def _cleaned(value: Any, found: Counter[str], also: Collection[str]) -> Any:
    if isinstance(value, str):
        return redact(value, found, also)
    if isinstance(value, list):
        return [_cleaned(inner, found, also) for inner in value]
    if isinstance(value, dict):
        return {redact(name, found, also): _cleaned_field(name, inner, found, also) for name, inner in value.items()}
    return value


def _cleaned_field(name: str, value: Any, found: Counter[str], also: Collection[str]) -> Any:
    """A value under a name that may say what it is, as `password`."""
    if not isinstance(value, str):
        return _cleaned(value, found, also)
    counts = Counter[str]()
    whole = redact(f'"{name}": "{value}"', counts, also) if '"' not in value and "\\" not in value else ""
    head, tail = f'"{name}": "', '"'
    if counts and whole.startswith(head) and whole.endswith(tail):
        found += counts
        return whole[len(head) : -len(tail)]
    return redact(value, found, also)


def _column(column: pa.ChunkedArray, found: Counter[str], clean: Clean, suspect: Suspects) -> pa.ChunkedArray | None:
    """The column without secrets, or None where it has none: of texts, of lists, of structs."""
    if column.null_count == len(column):
        return None
    if pa.types.is_struct(column.type):
        whole, before = column.combine_chunks(), found.total()
        parts = [pa.chunked_array([part], part.type) for part in whole.flatten()]
        texts = [_column(part, found, clean, suspect) if holds_text(part.type) else None for part in parts]
        if found.total() == before:
            return None
        cleaned = [(old if new is None else new).combine_chunks() for old, new in zip(parts, texts, strict=True)]
        return pa.chunked_array([pa.StructArray.from_arrays(cleaned, fields=list(column.type))], column.type)
    if pa.types.is_list(column.type):
        whole = column.combine_chunks()
        values = _column(pa.chunked_array([whole.flatten()], column.type.value_type), found, clean, suspect)
        if values is None:
            return None
        offsets = pc.cumulative_sum(pc.fill_null(pc.list_value_length(whole), 0))
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), offsets])
        return pa.chunked_array(
            [pa.ListArray.from_arrays(offsets, values.combine_chunks(), mask=pc.is_null(whole))], column.type
        )
    pattern = suspect[not pc.all(pc.string_is_ascii(column)).as_py()]
    suspects = pc.indices_nonzero(pc.match_substring_regex(column, pattern))
    texts = column.take(suspects).to_pylist()
    secret = {text for text in set(texts) if clean(text, Counter()) != text}  # most suspects are ids that come again
    if not secret:
        return None
    values = column.to_pylist()
    for row, text in zip(suspects.to_pylist(), texts, strict=True):
        if text in secret:
            values[row] = clean(text, found)
    return pa.chunked_array([pa.array(values, column.type)])


def _replace(kind: str, check: Check | None, found: Counter[str], match: re.Match[str]) -> str:
    """Where a group of a pattern holds the secret, what stands around it is kept."""
    if MARK in match[0] or (check and not check(match)):
        return match[0]
    found[kind] += 1
    secret = match.span(1) if match.re.groups == 1 and len(match[1] or "") >= SHORTEST else match.span()
    if check and match.re.groups == 1:
        secret = match.span(1)
    start, end = secret[0] - match.start(), secret[1] - match.start()
    return f"{match[0][:start]}{MARK}{kind}]{match[0][end:]}"


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
