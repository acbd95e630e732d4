"""Episodes of thousands of steps: written while they are played, in bounded memory, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.streaming_writer import StreamingWriter
from flywheel.datasets.maintenance.check import check
from flywheel.datasets.maintenance.compaction import collect_garbage
from flywheel.errors import LakeError
from flywheel.trajectory import Image, Trajectory


def test_a_draft_is_seen_when_it_is_committed(any_lake: Lake, golden: list[Trajectory]) -> None:
    one = golden[0]
    picture = Image("image/png", b"pixels")
    with StreamingWriter(any_lake, replace(one, steps=())) as draft:
        for step in one.steps:
            draft.add([replace(step, screenshot=picture.sha256)], [picture])
        assert any_lake.sql("from trajectories").num_rows == 0
        assert draft.commit(one, "played")
    (stored,) = any_lake.trajectories([one.trajectory_id])
    assert [step.screenshot for step in stored.steps] == [picture.sha256] * one.length
    assert replace(stored, steps=tuple(replace(step, screenshot=None) for step in stored.steps)) == one
    assert any_lake.images(one.trajectory_id) == {picture.sha256: picture}
    assert any_lake.append([one], "again") == 0
    with StreamingWriter(any_lake, one) as draft:
        draft.add(one.steps)
        assert not draft.commit(one, "again")
    assert check(any_lake) == []


def test_a_draft_left_alone_leaves_nothing(lake: Lake, golden: list[Trajectory]) -> None:
    with pytest.raises(KeyboardInterrupt), StreamingWriter(lake, golden[0]) as draft:
        draft.add(golden[0].steps * 20)
        raise KeyboardInterrupt
    assert list(lake.staging.iterdir()) == []
    assert check(lake) == []
    with pytest.raises(LakeError, match="the draft is of"), StreamingWriter(lake, golden[0]) as draft:
        draft.commit(golden[1], "another")
    assert lake.snapshot() == 0


PLAYER = textwrap.dedent("""
    import json, random, resource, sys
    from dataclasses import replace
    from pathlib import Path
    from flywheel.rollouts.episode import Episode, Job, Origin
    from flywheel.agents.scripted import RandomPolicy
    from flywheel.datasets.lake.streaming_writer import StreamingWriter
    from flywheel.datasets.lake.lake import Lake
    from flywheel.datasets.maintenance.compaction import compact
    from flywheel.environments.protocol import Observation
    from flywheel.trajectory import Split, Step, StopReason, Task

    lake, length, chance = Lake(Path(sys.argv[1]), create=True), int(sys.argv[2]), random.Random(0)
    word = [f"{chance.getrandbits(32):08x}" for _ in range(500)]
    def step(index):
        text = " ".join(chance.choices(word, k=2220))
        return Step(index, text, "", "", "", "", None, "", "", False, "look", 0.0, 0.0, False, False, "p", "1", True,
                    0, 0, None, 0.0)
    for seed in range(2):
        job, origin = Job(Task("e", "{}", Split.TRAIN, seed)), Origin(1, "collect", "c")
        blank = Episode(job, RandomPolicy(), origin, 0.0, Observation("x"))
        whole = blank.finished(StopReason.STEP_LIMIT)
        with StreamingWriter(lake, whole) as draft:
            for index in range(length):
                draft.add([step(index)])
            draft.commit(whole, "long")
    assert compact(lake, least=2) == 2
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                      "steps": lake.sql("select count(*) as n, min(length(observation)) as w from steps").to_pylist()}))
""")


@pytest.mark.slow
def test_memory_does_not_grow_with_an_episode(tmp_path: Path) -> None:
    """Two episodes of 5,000 steps of 20 KB, written and compacted, beside two of 500: 180 MB more text."""
    peaks = []
    for length in (500, 5000):
        command = [sys.executable, "-c", PLAYER, str(tmp_path / str(length)), str(length)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert found["steps"] == [{"n": 2 * length, "w": pytest.approx(19_979, abs=2)}]
        peaks.append(found["peak"])
    assert peaks[1] - peaks[0] < 100, peaks


def test_what_a_killed_draft_leaves_is_collected(lake: Lake, golden: list[Trajectory]) -> None:
    (lake.staging / "0.steps.parquet").write_bytes(b"half")
    lake.append(golden, "episodes")
    assert collect_garbage(lake, grace=3600.0) == 0
    assert collect_garbage(lake, grace=0.0) == 1
    assert list(lake.staging.iterdir()) == []
