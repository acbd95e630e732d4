"""Rules for secrets and personal data in text: the keys that people really leak, as their services publish the forms.

A rule is a regular expression of bounded repetitions, so that any text is read in linear time, and where letters alone
do not tell, a check: entropy for keys without a prefix, Luhn's digit for cards (ISO/IEC 7812), modulus 97 for IBANs
(ISO 13616). What they find and miss is measured in docs/experiments/0011.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

Check = Callable[[re.Match[str]], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """One form of one kind of secret. Group 1 of the pattern is the secret where it has a group, else all of it."""

    kind: str
    pattern: str
    check: Check | None = None
    signs: tuple[str, ...] = ()
    """In lower case: a text without any of these has no such secret, and the pattern is not tried."""


ENTROPY = 4.2
"""Bits a letter from which forty letters of base 64 look random; those of a hexadecimal digest have at most 4."""
_PLACEHOLDER = re.compile(
    r"(?i)^(?:[*•.xX#-]{3,}|<[^>]*>|\$\{[^}]*\}?|\$\([^)]*\)?|\$[A-Za-z_]\w*|%[A-Za-z_]\w*%"
    r"|%\([a-z_]+\)s|\{+[^}]*\}+|\[redacted.*|redacted|"
    r"(?:your|my|the|change|example|placeholder|dummy|none|null|true|false|undefined|required"
    r"|optional|secret|string|str|password|passwd|pass|pwd)"
    r"(?:[_ -]?(?:me|here|password|passwd|pass|pwd|it))?)$"
)
_CODE = re.compile(
    r"^(?:[A-Za-z_][\w.]*[(\[].*|(?:self|os|this|settings|config|process|args|options|request|env"
    r"|secrets)\..*|[A-Za-z_]+(?:\.[A-Za-z_]+)+\d?)$"
)
_ISSUED = re.compile(
    r"(?:4(?:\d{15}|\d{18})|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|2720\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14})$"
)
"""Numbers as the issuers of cards give them out."""
_FILES = re.compile(
    r"(?:png|jpg|jpeg|gif|svg|webp|avif|ico|css|js|mjs|map|ts|tsx|py|pyc|json|html|htm|md|txt|toml|yaml|yml|xml|csv"
    r"|parquet|gz|zip|tar|whl|so)$"
)
"""What ends a file's name, as `logo@2x.png`, and no address."""
_IBANS = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "PT",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ CY DO GT HU LB PL",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT",
    32: "LC",
}
"""Length of an IBAN → countries that write it so."""
_IBAN_LENGTHS = {country: length for length, countries in _IBANS.items() for country in countries.split()}
_EDGE = r"(?:^|[^A-Za-z0-9_-])"
_SPACE = r"[ \u00a0\u2000-\u200a\u202f\u205f\u3000]"
_GAP = r"(?:[^\w\r\n]{1,3}|_)"
_USUAL_GAP = re.compile(r"[ \u00a0\u2000-\u200a\u202f\u205f\u3000.\u00b7\u2010-\u2015\u2212-]")
_LIST_GAP = re.compile(r"[,;|]\s|\s[,;|]")
"""Between numbers of a list or a table, not within one number."""
_MARKS = (
    r"\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0711-\u074a"
    r"\u07a6-\u07b0\u07eb-\u07f3\u0816-\u082d\u0859-\u085b\u08d3-\u0963\u0981-\u0df3\u0e31-\u0e4e\u0eb1-\u0ecd"
    r"\u0f18-\u0fc6\u102b-\u1049\u1056-\u109d\u135d-\u135f\u1712-\u1714\u17b4-\u17d3\u18a9\u1920-\u193b\u1a17-\u1a7f"
    r"\u1ab0-\u1ace\u1b00-\u1b44\u1b6b-\u1bf3\u1c24-\u1c37\u1cd0-\u1cf9\u1dc0-\u1dff\ua802-\ua827\ua880-\ua8c5"
    r"\ua8e0-\ua8f1\ua926-\uaaef\uabe3-\uabed"
)
r"""Combining marks, which write vowels in many scripts; `\w` has letters alone."""
_WORD = rf"\w{_MARKS}"
_PASSWORD_NAME = r"(?i:pass(?:word|wd|phrase)|(?:\b|_)pwd)[A-Za-z0-9]{0,8}"
_PASSWORD_SIGNS = ("pass", "pwd")


def _looks_random(match: re.Match[str]) -> bool:
    text = match[1]
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts) >= ENTROPY


def _has_digit(match: re.Match[str]) -> bool:
    return any(letter.isdigit() for letter in match[0])


def _is_token(match: re.Match[str]) -> bool:
    return any(letter.isdigit() for letter in match[1]) or match[1].endswith("=")


def _is_given(match: re.Match[str]) -> bool:
    return not _PLACEHOLDER.match(match[1])


def _is_password(match: re.Match[str]) -> bool:
    """In quotes, anything but a placeholder. Bare, no code either, and something besides letters in it, unless the name
    before it is that of an environment variable."""
    value, start = match[1], match.start(1) - match.start()
    if _PLACEHOLDER.match(value):
        return False
    if match[0][start - 1] in "\"'":
        return True
    return not _CODE.match(value) and (re.search(r"[^A-Za-z_]", value) is not None or match[0][:start].isupper())


def _is_address(match: re.Match[str]) -> bool:
    local, _, domain = match[1].rpartition("@")
    last = domain.rpartition(".")[2].lower()
    return not _FILES.fullmatch(last) and local != "git" and not local.endswith(".") and ".." not in domain


def _is_card(match: re.Match[str]) -> bool:
    digits = "".join(str(int(letter)) for letter in match[1] if letter.isdigit())
    groups = [len(group) for group in re.split(r"\D+", match[1])]
    gaps = set(re.findall(r"\D+", match[1]))
    if any(_LIST_GAP.search(gap) for gap in gaps) or (len(gaps) > 1 and not all(map(_USUAL_GAP.fullmatch, gaps))):
        return False
    printed = groups in ([len(digits)], [4, 4, 4, 4], [4, 6, 5], [4, 6, 4], [4, 4, 4, 4, 3])
    return printed and _ISSUED.match(digits) is not None and _luhn(digits)


def _luhn(digits: str) -> bool:
    numbers = [int(digit) for digit in reversed(digits)]
    doubled = [2 * number - 9 * (number > 4) for number in numbers[1::2]]
    return len(set(numbers)) > 1 and (sum(numbers[::2]) + sum(doubled)) % 10 == 0


def _is_iban(match: re.Match[str]) -> bool:
    plain = "".join(match[1].split())
    number = "".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])
    return _IBAN_LENGTHS.get(plain[:2]) == len(plain) and int(number) % 97 == 1


def _is_phone(match: re.Match[str]) -> bool:
    shown, before = match[1], match.string[max(0, match.start(1) - 2) : match.start(1)]
    digits = sum(letter.isdigit() for letter in shown)
    return 9 <= digits <= 15 and (shown[0] == "+" or not re.search(r"\d[: ]$", before))


RULES: tuple[Rule, ...] = (
    Rule(
        "private key",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?s:.*?-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|.*)",
        signs=("private key",),
    ),
    Rule(
        "github token",
        r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{36,255})",
        signs=("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    ),
    Rule(
        "gitlab token",
        r"\bgl(?:pat|dt|ft|soat|rt|cbt|ptt|imt|agent|ffct)-[A-Za-z0-9_-]{20,320}(?:\.[0-9a-z]{2}\.?[0-9a-z]{7})?",
        signs=("gl",),
    ),
    Rule("google api key", r"\bAIza[A-Za-z0-9_-]{30,}", signs=("aiza",)),
    Rule(
        "google oauth token",
        r"\b(?:ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{28})",
        signs=("ya29.", "gocspx-"),
    ),
    Rule("npm token", r"\bnpm_[A-Za-z0-9]{30,}", signs=("npm_",)),
    Rule("pypi token", r"\bpypi-AgE[A-Za-z0-9_-]{50,}", signs=("pypi-",)),
    Rule("digitalocean token", r"\bdo[opr]_v1_[a-f0-9]{32,}", signs=("_v1_",)),
    Rule("xai key", r"\bxai-[A-Za-z0-9]{40,}", signs=("xai-",)),
    Rule("databricks token", r"\bdapi[a-f0-9]{32}(?:-\d)?", signs=("dapi",)),
    Rule(
        "aws secret key",
        r"\b(?:AKIA|ASIA)[A-Z2-7]{16}[\"']?[\s,;:|]{1,4}[\"']?([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+=]|$)",
        _looks_random,
        signs=("akia", "asia"),
    ),
    Rule(
        "aws access key",
        r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b",
        signs=("akia", "asia", "abia", "acca"),
    ),
    Rule(
        "aws secret key",
        r"(?i:aws_?secret|secret[_. -]?(?:access)?[_. -]?key)[A-Za-z_]{0,20}(?: \[[^\]\n]{0,24}"
        r"\])?[\\\"']{0,3}\s{0,4}(?:=>|:=|[:=]|\s)\s{0,4}[\\\"']{0,3}([A-Za-z0-9/+]{40})"
        r"(?:[^A-Za-z0-9/+=]|$)",
        _looks_random,
        signs=("secret",),
    ),
    Rule(
        "slack token",
        r"\b(?:xox[abeoprs](?:\.xox[bp])?-\d[A-Za-z0-9-]{8,}[A-Za-z0-9]|xox[cd]-[A-Za-z0-9%/+=-]{30,}"
        r"|xapp-\d-[A-Z0-9]{8,}-\d{8,}-[a-f0-9]{32,})",
        signs=("xox", "xapp-"),
    ),
    Rule(
        "slack webhook",
        r"https://hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/([A-Za-z0-9/_-]{20,})",
        signs=("hooks.slack",),
    ),
    Rule(
        "stripe key",
        r"\b(?:[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{32,})",
        signs=("sk_", "rk_", "whsec_"),
    ),
    Rule(
        "hugging face token",
        r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}",
        signs=("hf_", "api_org_"),
    ),
    Rule("anthropic key", r"\bsk-ant-[A-Za-z0-9_-]{20,}", signs=("sk-ant-",)),
    Rule(
        "openai key",
        r"\bsk-(?:(?:proj|svcacct|admin|None|or-v1)-[A-Za-z0-9_-]{20,}"
        r"|[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}|[A-Za-z0-9]{20,})",
        _has_digit,
        signs=("sk-",),
    ),
    Rule("groq key", r"\bgsk_[A-Za-z0-9]{30,}", signs=("gsk_",)),
    Rule(
        "json web token",
        _EDGE + r"(ey[JI][A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)?)",
        signs=("eyj", "eyi"),
    ),
    Rule("twilio key", r"\bSK[a-f0-9]{32}\b", signs=("sk",)),
    Rule(
        "twilio key",
        r"(?i:twilio[A-Za-z_.-]{0,12}(?:token|secret))[A-Za-z_]{0,8}[\\\"']{0,3}\s{0,4}[:=]\s{0,4}"
        r"[\\\"']{0,3}([a-f0-9]{32})\b",
        signs=("twilio",),
    ),
    Rule("sendgrid key", r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", signs=("sg.",)),
    Rule("telegram token", r"(?:^|[^0-9])([0-9]{8,10}:AA[A-Za-z0-9_-]{33})", signs=(":aa",)),
    Rule(
        "azure key",
        r"(?i:AccountKey|SharedAccessKey)=([A-Za-z0-9+/]{42,86}={1,2})",
        signs=("accountkey=", "sharedaccesskey="),
    ),
    Rule(
        "gcp private key id",
        r"private_key_id[\\\"']{0,3}\s{0,4}[:=]\s{0,4}[\\\"']{0,3}([a-f0-9]{40})\b",
        signs=("private_key_id",),
    ),
    Rule("bearer token", r"(?i:\bbearer)\s{1,4}([A-Za-z0-9._~+/-]{20,}={0,2})", _is_token, signs=("bearer",)),
    Rule(
        "basic auth",
        r"(?i:\bauthorization)[\\\"']{0,3}\s{0,4}[:=]\s{0,4}[\\\"']{0,3}(?i:basic)\s{1,4}([A-Za-z0-9+/]{8,}={0,2})",
        signs=("authorization",),
    ),
    Rule("basic auth", r"://[^\s/?#:@\"'<>]{0,128}:([^\s/?#\"'<>]{3,256})@[A-Za-z0-9\[<$]", _is_given, signs=("://",)),
    Rule(
        "password",
        _PASSWORD_NAME + r"(?:\\?[\"'])?\s{0,4}(?:=>|:=|[:=])"
        r"\s{0,4}\\?\"((?:[^\"\\\n]|\\[^\"\n]){4,128})\\?\"",
        _is_password,
        signs=_PASSWORD_SIGNS,
    ),
    Rule(
        "password",
        _PASSWORD_NAME + r"(?:\\?[\"'])?\s{0,4}(?:=>|:=|[:=])"
        r"\s{0,4}\\?'((?:[^'\\\n]|\\[^'\n]){4,128})\\?'",
        _is_password,
        signs=_PASSWORD_SIGNS,
    ),
    Rule(
        "password",
        _PASSWORD_NAME + r"\s{0,4}(?:=>|:=|[:=])\s{0,4}"
        r"([^\s\"'\\,;=(){}\[\]<>&|$][^\s\"'\\,;(){}\[\]<>|]{5,127})",
        _is_password,
        signs=_PASSWORD_SIGNS,
    ),
    Rule(
        "e-mail address",
        rf"(?:^|[^{_WORD}.%+'-])([{_WORD}%+][{_WORD}.%+'’-]{{0,63}}@(?:[{_WORD}][{_WORD}-]{{0,62}}"
        rf"\.){{1,8}}(?:xn--[A-Za-z0-9-]{{2,59}}|[^\W\d_](?:[^\W\d_]|[{_MARKS}]){{0,31}}))",
        _is_address,
        signs=("@",),
    ),
    Rule(
        "card number",
        rf"(?:^|[^\w.])(\d{{4}}(?:{_GAP}?\d{{4}}){{2}}{_GAP}?\d{{1,4}}(?:{_GAP}?\d{{3}})?|\d{{4}}{_GAP}"
        rf"\d{{6}}{_GAP}\d{{4,5}}|\d{{13,19}})(?:\D|$)",
        _is_card,
    ),
)
OPTIONAL: tuple[Rule, ...] = (
    Rule("iban", rf"\b([A-Z]{{2}}\d{{2}}(?:{_SPACE}?[A-Z0-9]{{4}}){{2,7}}(?:{_SPACE}?[A-Z0-9]{{1,3}})?)\b", _is_iban),
    Rule(
        "phone number",
        rf"(?:^|[^\w.+/-])(\+[1-9]\d{{0,2}}{_SPACE}?(?:\(\d{{1,4}}\){_SPACE}?)?(?:\d{{1,12}}"
        rf"[ \u00a0\u202f./-]?){{1,6}}\d|\(\d{{2,5}}\){_SPACE}?\d{{3,4}}[ .-]?\d{{3,5}}|0\d{{1,4}}"
        rf"[ /-]\d{{2,8}}(?:[ -]\d{{2,6}}){{0,4}}|[2-9]\d{{2}}[-. ][2-9]\d{{2}}[-. ]\d{{4}})(?:[^\w-]|$)",
        _is_phone,
    ),
)
"""Found where they are asked for: numbers of this form have many other meanings."""
