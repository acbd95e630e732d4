"""Coverage-guided fuzzing of what reads foreign records: damaged ones of every format become trajectories or a reason.

    python tests/fuzz_readers.py --seconds 600 --keep

Structure-aware: the fuzzer's bytes choose a good record, where to damage it, and with what. A run begins with what lies
in `tests/corpus/`; `--keep` adds inputs that reach new code. Ends with code 77 on any error but `RecordError`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(
    include=["flywheel.datasets.formats", "flywheel.datasets.lake.provenance", "flywheel.datasets.formats.importing"]
):
    from flywheel.datasets.formats.catalog import SPLITTERS
    from flywheel.datasets.formats.importing import ImportOptions, trajectories_of
    from flywheel.datasets.formats.parsing import Raw
    from flywheel.datasets.formats.records import ReadContext
    from flywheel.datasets.lake.provenance import with_claims
from flywheel.arrow import steps_to_arrow
from flywheel.errors import RecordError
from flywheel.trajectory import Split

CORPUS = Path(__file__).parent / "corpus"
LENGTH = 512
"""Bytes that choose one damaged record."""
NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    0.5,
    1e308,
    "",
    "\x00",
    "\ud800",
    "²",
    "9" * 5000,
    "a" * 2000,
    "../../etc/passwd",
    "data:image/png;base64,AA",
    "2025-99-99T00:00:00Z",
    "[/b]\x1b[2J",
    [],
    {},
    [None],
    {"": ""},
]


def seeds() -> dict[str, Any]:
    """A good record of every format."""
    from tests.test_formats import SEEDS

    own = json.loads((Path(__file__).parent / "data" / "own_atif.json").read_text())
    return {**SEEDS, "atif of ours": own}


def damage(choices: atheris.FuzzedDataProvider, record: Any) -> Any:
    """The record with a few values replaced, moved or taken away, wherever the choices say."""
    if choices.ConsumeIntInRange(0, 200) == 200:
        return copy.deepcopy(NASTY[choices.ConsumeIntInRange(0, len(NASTY) - 1)])
    whole = copy.deepcopy(record)
    for _ in range(choices.ConsumeIntInRange(1, 4)):
        place = whole
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[choices.ConsumeIntInRange(0, len(keys) - 1)]
            if isinstance(place[key], dict | list) and place[key] and choices.ConsumeIntInRange(0, 4):
                place = place[key]
                continue
            _change(choices, place, key)
            break
    return whole


def _change(choices: atheris.FuzzedDataProvider, place: Any, key: Any) -> None:
    how = choices.ConsumeIntInRange(0, 5)
    if how == 0:
        del place[key]
    elif how == 1:
        place[key] = choices.ConsumeUnicode(12)
    elif how == 2:
        place[key] = [place[key], place[key]]
    elif how == 3:
        nested: Any = place[key]
        for _ in range(choices.ConsumeIntInRange(1, 300)):
            nested = [nested]
        place[key] = nested
    else:
        place[key] = copy.deepcopy(NASTY[choices.ConsumeIntInRange(0, len(NASTY) - 1)])


def try_record(format: str, record: Any) -> None:
    """Read a record as an import does. Any error but `RecordError` is a finding."""
    parts = SPLITTERS[format](record) if format in SPLITTERS else [record]
    for part in parts:
        try:
            raw = Raw(Path("fuzz.json"), 1, json.dumps(part).encode())
        except RecursionError:
            continue
        for trust in (False, True):
            try:
                for one in trajectories_of(raw, ImportOptions(format, Split.TRAIN, None, "me", trust), ReadContext()):
                    list(steps_to_arrow([with_claims(one)]))
            except RecordError as error:
                assert "\n" not in str(error), error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", action="store_true", help="keep inputs that reach new code")
    given = parser.parse_args()
    good = sorted(seeds().items())

    def one_input(data: bytes) -> None:
        choices = atheris.FuzzedDataProvider(data)
        name, record = good[choices.ConsumeIntInRange(0, len(good) - 1)]
        try_record(name.split()[0], damage(choices, record))

    CORPUS.mkdir(exist_ok=True)
    folders = [str(CORPUS)] if given.keep else [tempfile.mkdtemp(prefix="fuzz-"), str(CORPUS)]
    flags = [f"-max_total_time={given.seconds}", f"-max_len={LENGTH}", "-rss_limit_mb=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, *folders], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
