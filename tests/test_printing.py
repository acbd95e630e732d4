"""Printing: no value of a result is lost, text is data, and a query keeps to its time and memory, whatever it does."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.datasets.lake.lake import Lake
from flywheel.errors import QueryError
from flywheel.runtime.watchdog import bytes_of
from flywheel.text import markdown, printable, unique
from flywheel.trajectory import Trajectory

FLYWHEEL = Path(sys.executable).with_name("flywheel")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory, golden: list[Trajectory]) -> list[str]:
    """Options that name a small lake."""
    with Lake(tmp_path_factory.mktemp("printing"), create=True) as lake:
        lake.append(golden, "episodes")
        return ["--data-dir", str(lake.root)]


def sql(where: list[str], query: str, *more: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(FLYWHEEL), "sql", query, *more, *where], capture_output=True, text=True, env=environment, timeout=120
    )


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# -- values ------------------------------------------------------------------------------------------------------------


def test_columns_of_one_name_keep_their_values(where: list[str], tmp_path: Path) -> None:
    query = "select 1 as a, 2 as b, 3 as a"
    assert list(csv.reader(io.StringIO(sql(where, query, "--format", "csv").stdout))) == [
        ["a", "b", "a"],
        ["1", "2", "3"],
    ]
    assert strict(sql(where, query, "--json").stdout) == [{"a": 1, "b": 2, "a_2": 3}]
    assert strict(sql(where, query, "--format", "jsonl").stdout) == {"a": 1, "b": 2, "a_2": 3}
    assert re.findall(r"\d", sql(where, query).stdout) == ["1", "2", "3"]
    sql(where, query, "--format", "parquet", "--output", str(tmp_path / "x.parquet"))
    assert [column.to_pylist() for column in pq.ParquetFile(tmp_path / "x.parquet").read().columns] == [[1], [2], [3]]


@given(st.lists(st.sampled_from(["a", "b", "a_2", ""]), max_size=6))
def test_names_become_unique(names: list[str]) -> None:
    assert len(set(unique(names))) == len(names)


def test_nan_and_infinity_are_valid_json(where: list[str]) -> None:
    query = "select 'nan'::double as x, -'inf'::double as y, [1.5, 'inf'::double] as z"
    plain = sql(where, query, "--json")
    assert strict(plain.stdout) == [{"x": None, "y": None, "z": [1.5, None]}]
    assert "3 values are NaN or infinite" in plain.stderr
    told = sql(where, query, "--json", "--non-finite", "text")
    assert strict(told.stdout) == [{"x": "NaN", "y": "-Infinity", "z": [1.5, "Infinity"]}]


def test_nothing_is_too_large_or_too_far_away(where: list[str]) -> None:
    query = """select 170141183460469231731687303715884105727::hugeint as huge, date '290000-01-01' as far,
                      'infinity'::timestamp as never, 1.50::decimal(9, 2) as money, 'x'::blob as bytes,
                      {'when': date '2020-01-01', 'n': 1} as inside, sum(i) as total from range(10) t(i)"""
    (row,) = strict(sql(where, query, "--json").stdout)
    assert row == {
        "huge": 2**127 - 1,
        "far": "290000-01-01",
        "never": "infinity",
        "money": "1.50",
        "bytes": "x",
        "inside": {"when": "2020-01-01", "n": 1},
        "total": 45,
    }
    for form in ("csv", "table"):
        shown = sql(where, query, "--format", form).stdout
        assert str(2**127 - 1) in shown
        assert "290000-01-01" in shown


def test_a_wide_table_shows_something_at_80_columns(where: list[str]) -> None:
    many = sql(where, "from trajectories limit 5")
    assert "trajectory_id" in many.stdout
    assert "columns do not fit and were left out" in many.stderr
    assert "final_observation" in many.stderr
    one = sql(where, "from trajectories limit 1")
    assert "final_observation" in one.stdout
    assert one.stderr == ""
    assert max(map(len, (many.stdout + one.stdout).splitlines())) <= 80


def test_a_long_result_is_cut_on_the_terminal_and_whole_in_files(where: list[str], tmp_path: Path) -> None:
    shown = sql(where, "select * from range(5000)")
    assert "the first 1000 rows" in shown.stderr
    assert len(sql(where, "select * from range(5000)", "--format", "csv").stdout.splitlines()) == 5001
    assert sql(where, "select * from range(5000)", "--output", str(tmp_path / "all")).returncode == 0
    assert len((tmp_path / "all").read_text().splitlines()) == 5001
    again = sql(where, "select 1", "--output", str(tmp_path / "all"))
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    arrow = subprocess.run(
        [str(FLYWHEEL), "sql", "select * from range(5000)", "--format", "arrow", *where],
        capture_output=True,
        check=True,
    )
    assert pa.ipc.open_stream(arrow.stdout).read_all().num_rows == 5000


ODD = ["update extensions", "select '[/b]'", "select interval 1 day", "select union_value(k := 1)", "select"]
ODD += ["select 1; select 2", "select 'a'::int", "frm x"]


@pytest.mark.parametrize("query", ODD)
def test_every_statement_ends_in_a_result_or_one_line(where: list[str], query: str) -> None:
    for form in ("table", "parquet"):
        done = subprocess.run([str(FLYWHEEL), "sql", query, "--format", form, *where], capture_output=True)
        told = done.stderr.decode()
        assert "Traceback" not in told
        assert done.returncode in (0, 2)
        if done.returncode:
            assert told.count("\n") == 1


def test_a_full_disk_and_a_reader_who_has_enough_are_one_line_at_most(where: list[str]) -> None:
    call = [str(FLYWHEEL), "sql", "select range from range(300000)", "--format", "csv", *where]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


# -- text is data ------------------------------------------------------------------------------------------------------


HOSTILE = "a[i] + b[/red] :smile: \x1b]0;owned\x07\x1b[2J \u202eabc [link=http://evil.example]x[/link]"


def test_text_of_a_trajectory_steers_no_terminal(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": messages, "model": HOSTILE[:20]}) + "\n")
    where = ["--data-dir", str(tmp_path / "lake")]
    base = [str(FLYWHEEL)]
    subprocess.run([*base, "import", str(tmp_path / "log.jsonl"), "--format", "chat", *where], check=True)
    one = sql(where, "select trajectory_id from trajectories", "--format", "csv").stdout.splitlines()[1]
    for command in (["show", one], ["sql", "from steps"], ["sql", "select action from steps"], ["lineage", one]):
        done = subprocess.run([*base, *command, *where], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not CONTROL.search(done.stdout), command
        assert "\u202e" not in done.stdout
    shown = sql(where, "select action from steps", columns=200).stdout
    assert "a[i] + b[/red] :smile:" in shown
    assert r"\x1b]0;owned\x07" in shown


@given(st.text())
def test_nothing_printable_obeys(text: str) -> None:
    shown = printable(text)
    assert not CONTROL.search(shown)
    shown.encode()


@given(st.text())
def test_markdown_shows_text_word_for_word(text: str) -> None:
    assert "\n" not in markdown(text)
    assert not re.search(r"(?<!\\)[<|`*\[]", re.sub(r"\\\\", "", markdown(text)))


def test_markdown_has_no_links_emoji_or_mentions() -> None:
    shown = markdown("__init__ https://evil.example :smile: @user # x www.evil.example")
    assert shown == r"\_\_init\_\_ https\://evil.example \:smile: \@user \# x www\.evil.example"


def test_fields_of_any_name_are_kept(where: list[str]) -> None:
    query = "select {'size': 1, 'a': 2, 'b c': [{'size': 3}]} as s, [1, 2]::int[2] as pair; -- done; really"
    assert strict(sql(where, query, "--json").stdout) == [
        {"s": {"size": 1, "a": 2, "b c": [{"size": 3}]}, "pair": [1, 2]}
    ]


def test_a_draft_that_a_killed_query_left_is_in_nobodys_way(where: list[str], tmp_path: Path) -> None:
    (tmp_path / "out.csv.part").write_text("half")
    assert sql(where, "select 1 as a", "--output", str(tmp_path / "out.csv")).returncode == 0
    assert (tmp_path / "out.csv").read_text() == "a\n1\n"
    assert (tmp_path / "out.csv.part").read_text() == "half"
    inside = sql(where, "select 1 as a", "--output", str(tmp_path / "out.csv" / "x.csv"))
    assert inside.returncode == 2 and "name a new file" in inside.stderr


# -- limits ------------------------------------------------------------------------------------------------------------


HEAVY = [
    "select * from range(30000000)",
    "select list_sum(list_transform(range(300000000), lambda x: x * 2))",
    "select length(repeat('x', 2000000000))",
    "select string_agg(repeat('ab', 1000), '') from range(3000000)",
    "with recursive r(n, s) as (select 1, 'x' union all select n + 1, s || s from r where n < 40) select len(s) from r",
    "select list_sort(list_transform(range(100000000), lambda x: hash(x)))",
    "select count(*) from range(10000000) a, range(10000000) b where a.range * b.range % 7 = 3",
    "select regexp_replace(repeat('a', 200000000), '(a+)+$', 'b')",
    "select list(range::varchar) from range(20000000)",
    "select levenshtein(repeat('ab', 50000), repeat('ba', 50000))",
]


@pytest.mark.minutes
@pytest.mark.parametrize("query", HEAVY)
def test_time_and_memory_bind_the_whole_command(where: list[str], query: str) -> None:
    began = time.monotonic()
    process = subprocess.Popen(
        [str(FLYWHEEL), "sql", query, "--json", "--timeout", "3", "--memory", "500MB", *where],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    with process:
        while process.poll() is None:
            peak = max(peak, _peak(process.pid))
            time.sleep(0.05)
        assert process.stderr is not None
        told = process.stderr.read()
    assert time.monotonic() - began < 3 + 2 + 3, "the limit, 2 s, and what it takes to start"
    assert peak < 1_000 << 20
    assert "Traceback" not in told
    assert process.returncode in (0, 2)


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) << 10 if found else 0


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 << 30), ("500MB", 500 << 20), ("1 KiB", 1 << 10), ("7", 7)])
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text) == size


def test_a_size_that_is_none() -> None:
    with pytest.raises(QueryError, match="is no size"):
        bytes_of("plenty")
