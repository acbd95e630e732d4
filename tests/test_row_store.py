"""Rows on disk: what goes into a store comes out, in the order of the trajectories; memory does not grow."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.arrow import routes_to_arrow, segments_to_arrow
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import Example
from flywheel.distill.batching.row_store import (
    BATCH,
    RowStore,
    RowWriter,
    groups_of,
    lengths_of,
    weight_of,
    with_columns,
    write_rows,
)
from flywheel.trajectory import Route, RouteTo, Segment

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "smoke.toml"
sys.path.insert(0, str(ROOT / "benchmarks"))
from made_up import trajectories  # noqa: E402

ROW = st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.integers(-1, 3))


def _example(length: int, group: int) -> Example:
    chance = np.random.default_rng(length)
    ids_T, weight_T = chance.integers(0, 99, length).astype(np.int32), chance.random(length).astype(np.float32)
    return Example(ids_T, weight_T, {"top": chance.random((length, 3)).astype(np.float32), "side": weight_T}, group)


def _same(one: Example, other: Example) -> bool:
    assert one.columns.keys() == other.columns.keys()
    pairs = [(one.ids_T, other.ids_T), (one.weight_T, other.weight_T)]
    pairs += [(one.columns[name], other.columns[name]) for name in one.columns]
    return one.group == other.group and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@given(st.lists(ROW, max_size=30), st.integers(1, 3))
def test_what_goes_on_comes_off_by_trajectory(rows: list[tuple[str, int, int]], copies: int) -> None:
    owned = [(owner, _example(length, group)) for owner, length, group in rows] * copies
    expected = sorted(owned, key=lambda row: row[0])
    with tempfile.TemporaryDirectory() as folder:
        store = write_rows(Path(folder) / "rows.arrow", owned)
        assert [store.owner(place) for place in range(len(store))] == [owner for owner, _ in expected]
        assert all(_same(one, other) for one, (_, other) in zip(store, expected, strict=True))
        plain = [one for _, one in expected]
        assert lengths_of(store) == lengths_of(plain)
        assert groups_of(store) == groups_of(plain)
        assert weight_of(store) == pytest.approx(weight_of(plain))


def test_rows_are_completed_a_batch_at_a_time(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "plain.arrow", ((f"{n % 7}", _example(n % 11, n)) for n in range(2 * BATCH + 5)))
    asked: list[range] = []

    def more(places: range, owners: object, rows: object) -> list[Example]:
        asked.append(places)
        return [
            Example(example.ids_T, example.weight_T, {"place": np.full(len(example.ids_T), place)})
            for place, example in zip(places, plain[places.start : places.stop], strict=True)
        ]

    full = with_columns(plain, tmp_path / "full.arrow", more)
    assert [len(places) for places in asked] == [BATCH, BATCH, 5]
    assert all(set(one.columns["place"].tolist()) <= {place} for place, one in enumerate(full))


def test_an_unfinished_shelf_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RowWriter(tmp_path / "rows.arrow") as store:
        store.add("a", _example(3, 0))
        raise KeyboardInterrupt
    assert not (tmp_path / "rows.arrow").exists()
    assert len(write_rows(tmp_path / "rows.arrow", [])) == 0
    assert RowStore(tmp_path / "rows.arrow").weight == 0


MEASURE = textwrap.dedent("""
    import sys
    from pathlib import Path
    from flywheel.agents.contexts.prompts import Role
    from flywheel.agents.contexts.tokenization import PieceTokenizer
    from flywheel.config.root import load
    from flywheel.datasets.lake.lake import Lake
    from flywheel.distill.data.corpus import load_corpus
    from flywheel.distill.data.rows import rows_of
    from flywheel.distill.batching.row_store import RowWriter, RowStore
    from flywheel.policies.tokenizer import train_tokenizer

    def held():
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    lake, config = Lake(Path(sys.argv[1])), load(Path(sys.argv[2]))
    rows = rows_of(config, load_corpus(config, lake, 1), Role.FLAT, 1)
    tokens = PieceTokenizer(train_tokenizer(["a b."], [], 300), max_entries=1000)
    most = written = 0
    with RowWriter(Path(sys.argv[3])) as store:
        for number, one, row in rows.epochs(tokens, 1):
            store.add(one, row)
            written += 1
            most = max(most, held()) if written % 20 == 0 else most
    read = RowStore(Path(sys.argv[3]))
    for place in range(len(read)):
        read[place].ids_T.sum()
    print(written, max(most, held()))
""")


def _filled(folder: Path, batches: int) -> Lake:
    made = list(trajectories(64, 40))
    lake = Lake(folder, create=True)
    for batch in range(batches):
        some = [replace(one, trajectory_id=f"{batch}-{place}") for place, one in enumerate(made)]
        ids = [trajectory.trajectory_id for trajectory in some]
        lake.append(some, "made up")
        segments = [Segment(trajectory_id, 0, 0, 40, "go", True, 1.0, "milestones/2") for trajectory_id in ids]
        routes = [Route(trajectory_id, RouteTo.SUPERVISED, True, "made up", "test") for trajectory_id in ids]
        lake.append_facts("segments", segments_to_arrow(segments), "segments", key=("source",))
        lake.append_facts("routes", routes_to_arrow(routes), "routes", key=("source",))
    return lake


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    """Eight times as many trajectories make eight times as many rows, and nearly the same peak."""
    told = []
    for batches in (8, 64):
        _filled(tmp_path / str(batches), batches).close()
        script = [sys.executable, "-c", MEASURE, str(tmp_path / str(batches)), str(SMOKE), str(tmp_path / "rows.arrow")]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told.append([float(number) for number in done.stdout.split()])
    (few, small), (many, large) = told
    print(f"{few:.0f} rows: {small:.0f} MB, {many:.0f} rows: {large:.0f} MB")
    assert many == 8 * few
    assert large < small + 60
