"""Duplicates: equal and nearly equal training episodes teach once, copies under a new id not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flywheel.agents.policy import Past
from flywheel.agents.scripted import NO_OP, Expert
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.protocol import World
from flywheel.filters.batch import batch_of
from flywheel.filters.curate import curate
from flywheel.filters.fingerprints import BANDS, VALUES, bands, fingerprints, signature
from flywheel.trajectory import Split, Task, Trajectory, trajectory_id
from tests.conftest import Play


def routes(lake: Lake) -> dict[str, str]:
    rows = lake.sql("select trajectory_id, route from trajectories").to_pylist()
    return {row["trajectory_id"]: row["route"] for row in rows}


def again(one: Trajectory, attempt: int = 1) -> Trajectory:
    """Honestly played again: another attempt, other timings."""
    name = trajectory_id(one.task, one.policy_id, one.policy_version, one.purpose, attempt)
    steps = tuple(replace(step, seconds=step.seconds + 0.001 * attempt) for step in one.steps)
    return replace(one, trajectory_id=name, attempt=attempt, steps=steps)


sets = st.sets(st.integers(0, 2**64 - 1), min_size=30, max_size=120)


@given(sets, sets)
def test_signatures_estimate_the_jaccard_similarity(one: set[int], other: set[int]) -> None:
    common = set(list(one)[: len(one) // 2])
    first, second = one, common | other
    truth = len(first & second) / len(first | second)
    found = [signature(np.array(sorted(some), np.uint64)) for some in (first, second)]
    error = np.sqrt(max(truth * (1 - truth), 1 / VALUES) / VALUES)
    assert abs(float(np.mean(found[0] == found[1])) - truth) <= 6 * error


@given(sets)
def test_signatures_are_blind_to_order_and_bands_to_everything_but_their_run(one: set[int]) -> None:
    elements = np.array(list(one), np.uint64)
    mine = signature(elements)
    assert np.array_equal(mine, signature(elements[::-1]))
    changed = mine.copy()
    changed[0] ^= 1
    apart = bands(np.stack([mine, changed]))
    assert apart.shape == (2, BANDS)
    assert (apart[0] == apart[1]).tolist() == [False] + [True] * (BANDS - 1)


def test_fingerprints_do_not_depend_on_the_batch(golden: list[Trajectory], noisy: list[Trajectory]) -> None:
    together = fingerprints(batch_of([*noisy, *golden])).to_pylist()
    assert together == [fingerprints(batch_of([trajectory])).to_pylist()[0] for trajectory in [*noisy, *golden]]


def test_the_same_deeds_teach_once_in_every_iteration(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden[:4], "first iteration")
    curate(smoke, lake)
    repeated = [again(trajectory) for trajectory in golden[:4]]
    lake.append(repeated, "second iteration")
    assert curate(smoke, lake) == {"supervised": 4, "duplicate": 4}
    rows = lake.sql("select trajectory_id, duplicate_of, similarity from fingerprints").to_pylist()
    found = {row["trajectory_id"]: (row["duplicate_of"], row["similarity"]) for row in rows}
    for trajectory, other in zip(golden, repeated, strict=False):
        assert found[other.trajectory_id] == (trajectory.trajectory_id, 1.0)
        assert found[trajectory.trajectory_id] == (None, None)


class LateExpert(Expert):
    """The expert, after one idle step."""

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        super().begin(slot, task, attempt, past)
        self.policy_id = "late-expert"
        self._plans[slot].append(NO_OP)


def test_nearly_the_same_playing_is_a_duplicate(
    smoke: Config, world: World, lake: Lake, golden: list[Trajectory], play: Play
) -> None:
    """One idle step more at the beginning of the same run."""
    lake.append(golden, "first")
    curate(smoke, lake)
    settings = smoke.model_copy(update={"curate": smoke.curate.model_copy(update={"near_duplicate": 0.6})})
    lake.append(play(LateExpert(world), 1), "nearly the same")
    curate(settings, lake)
    row = lake.sql("select similarity from fingerprints where duplicate_of is not null").to_pylist()[0]
    assert 0.6 <= row["similarity"] < 1


def test_a_copy_with_its_timings_is_no_second_playing(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    one = golden[0]
    name = trajectory_id(one.task, one.policy_id, one.policy_version, one.purpose, 7)
    lake.append([one], "original")
    curate(smoke, lake)
    lake.append([replace(one, trajectory_id=name, attempt=7)], "copy")
    curate(smoke, lake)
    assert routes(lake) == {one.trajectory_id: "supervised", name: "quarantine"}


def test_held_out_episodes_are_no_duplicates_of_each_other(smoke: Config, lake: Lake, play: Play, world: World) -> None:
    """Two good policies play a test task alike; both count."""
    from flywheel.agents.scripted import Expert

    test = play(Expert(world), 2, split=Split.TEST)
    lake.append([*test, *(again(one) for one in test)], "test")
    assert curate(smoke, lake) == {"held_out": 4}
    assert lake.sql("select sum(verified) as n from trajectories").to_pylist() == [{"n": 4}]


def test_a_killed_curation_decides_the_same_when_it_goes_on(
    smoke: Config, lake: Lake, golden: list[Trajectory], monkeypatch: object
) -> None:
    """Fingerprints were committed, routes were not: nothing is a duplicate of itself."""
    lake.append([*golden, again(golden[0])], "episodes")
    table = fingerprints(batch_of([*golden, again(golden[0])]))
    lake.append_facts("fingerprints", table, "killed after this", key=("source",))
    assert curate(smoke, lake) == {"supervised": len(golden), "duplicate": 1}
