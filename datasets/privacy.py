"""Secrets and personal data in text, found and replaced before anything is written.

Keys and tokens of known services by detect-secrets' own patterns; mail addresses, card numbers (with a valid check
digit, ISO/IEC 7812) and keys of model servers by ours. What was found is counted, never kept. Images are not read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

TEXT = frozenset(
    {
        "observation",
        "event",
        "note",
        "valid_actions",
        "thought",
        "subgoal",
        "action",
        "instruction",
        "place",
        "final_observation",
        "final_event",
        "error",
        "extra",
        "raw",
        "items",
        "reason",
    }
)
"""The columns that hold words of people, agents or environments."""
JSON = frozenset({"extra", "raw"})
"""Of them, those that hold JSON."""
Clean = Callable[[str, Counter[str]], str]
SERVICES = (
    "aws.AWSKeyDetector",
    "azure_storage_key.AzureStorageKeyDetector",
    "basic_auth.BasicAuthDetector",
    "discord.DiscordBotTokenDetector",
    "github_token.GitHubTokenDetector",
    "gitlab_token.GitLabTokenDetector",
    "jwt.JwtTokenDetector",
    "mailchimp.MailchimpDetector",
    "npm.NpmDetector",
    "private_key.PrivateKeyDetector",
    "pypi_token.PypiTokenDetector",
    "sendgrid.SendGridDetector",
    "slack.SlackDetector",
    "square_oauth.SquareOAuthDetector",
    "stripe.StripeDetector",
    "telegram_token.TelegramBotTokenDetector",
    "twilio.TwilioKeyDetector",
)
OWN = {
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----(?s:.*?-----END [A-Z ]*-----|.*)",
    "model server key": r"\b(?:sk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{30,})",
    "bearer token": r"(?i)\bbearer\s+[A-Za-z0-9._~+/-]{20,}=*",
    "e-mail address": r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b",
}
_CARD = re.compile(
    r"(?<![\w.])(?:4\d{12}(?:\d{3})?|(?:5[1-5]|2[2-7]|6[0245])\d{14}|3[47]\d{13}|3[0689]\d{12}|35\d{14}"
    r"|[2-6]\d{3}(?P<gap>[ -])\d{4}(?P=gap)\d{4}(?P=gap)\d{4}|3[47]\d{2}[ -]\d{6}[ -]\d{5})(?!\w|\.\d)"
)
"""As the issuers number and print them."""
_SUSPECT = r"[A-Za-z0-9_+/-]{16}|@|PRIVATE KEY|\d{13}|\d{4}[ -]\d{4}|(?i:bearer)\s"
"""Every secret holds a long run of letters and digits, an @, or many digits: one linear scan clears most text."""
SHORTEST = 6
"""Letters of a secret; a shorter group of a pattern is a prefix of it."""
MARK = "[REDACTED:"


def redacted(tables: Iterable[pa.Table], found: Counter[str]) -> Iterator[pa.Table]:
    """The tables with secrets in their text replaced by `[REDACTED:what]`; counts by kind are added to `found`."""
    for table in tables:
        for number, name in enumerate(table.column_names):
            if name in TEXT:
                column = _column(table[name], found, redact_json if name in JSON else redact)
                if column is not None:
                    table = table.set_column(number, table.schema.field(number), column)
        yield table


def redact(text: str, found: Counter[str]) -> str:
    """One text without its secrets."""
    for kind, pattern in _patterns():
        text = pattern.sub(partial(_replace, kind, found), text)
    return _CARD.sub(lambda match: _replace("card number", found, match) if _luhn(match[0]) else match[0], text)


def redact_json(text: str, found: Counter[str]) -> str:
    """A JSON text whose strings have no secrets; what is no JSON is read as text."""
    try:
        whole = json.loads(text)
    except ValueError:
        return redact(text, found)
    before = found.total()
    clean = _cleaned(whole, found)
    return text if found.total() == before else json.dumps(clean, ensure_ascii=False)


def _cleaned(value: Any, found: Counter[str]) -> Any:
    if isinstance(value, str):
        return redact(value, found)
    if isinstance(value, list):
        return [_cleaned(one, found) for one in value]
    if isinstance(value, dict):
        return {redact(name, found): _cleaned(one, found) for name, one in value.items()}
    return value


def _column(column: pa.ChunkedArray, found: Counter[str], clean: Clean) -> pa.ChunkedArray | None:
    """The column without secrets, or None where it has none: of texts, of lists, of structs."""
    if pa.types.is_struct(column.type):
        whole, before = column.combine_chunks(), found.total()
        parts = [pa.chunked_array([part], part.type) for part in whole.flatten()]
        texts = [_column(part, found, clean) if pa.types.is_string(part.type) else None for part in parts]
        if found.total() == before:
            return None
        cleaned = [(old if new is None else new).combine_chunks() for old, new in zip(parts, texts, strict=True)]
        return pa.chunked_array([pa.StructArray.from_arrays(cleaned, fields=list(column.type))], column.type)
    if pa.types.is_list(column.type):
        whole = column.combine_chunks()
        values = _column(pa.chunked_array([whole.flatten()], column.type.value_type), found, clean)
        if values is None:
            return None
        offsets = pc.cumulative_sum(pc.fill_null(pc.list_value_length(whole), 0))
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), offsets])
        return pa.chunked_array(
            [pa.ListArray.from_arrays(offsets, values.combine_chunks(), mask=pc.is_null(whole))], column.type
        )
    suspects = pc.indices_nonzero(pc.fill_null(pc.match_substring_regex(column, _SUSPECT), False)).to_pylist()
    before = found.total()
    changed = {row: clean(column[row].as_py(), found) for row in suspects}
    if found.total() == before:
        return None
    values = column.to_pylist()
    for row, text in changed.items():
        values[row] = text
    return pa.chunked_array([pa.array(values, column.type)])


def _replace(kind: str, found: Counter[str], match: re.Match[str]) -> str:
    """Where a group of a pattern holds the secret, what stands around it is kept."""
    if MARK in match[0]:
        return match[0]
    found[kind] += 1
    secret = match.span(1) if match.re.groups == 1 and len(match[1] or "") >= SHORTEST else match.span()
    start, end = secret[0] - match.start(), secret[1] - match.start()
    return f"{match[0][:start]}{MARK}{kind}]{match[0][end:]}"


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    from importlib import import_module

    patterns = [(kind, re.compile(pattern)) for kind, pattern in OWN.items()]
    for service in SERVICES:
        module, _, name = service.partition(".")
        plugin = getattr(import_module(f"detect_secrets.plugins.{module}"), name)
        patterns += [(plugin.secret_type.lower(), re.compile(one.pattern, one.flags)) for one in plugin.denylist]
    return patterns


def _luhn(text: str) -> bool:
    digits = [int(letter) for letter in reversed(text) if letter.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0
