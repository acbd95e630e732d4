"""Planted cheats: at least 95 % are caught, fewer than 1 % of honest episodes are suspected. Both figures are printed.

Honest episodes and cheats lie in one lake and go through the whole curate stage of the shipped pipeline.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from flywheel.agents.contexts.history import Limits
from flywheel.agents.contexts.prompts import Role
from flywheel.agents.scripted import Expert, Mistakes, RandomPolicy
from flywheel.config.root import Config
from flywheel.datasets.formats import atif
from flywheel.datasets.formats.exporting import export, select_ids
from flywheel.datasets.formats.importing import import_files
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import windows_of
from flywheel.distill.data.corpus import load_corpus
from flywheel.environments.protocol import World
from flywheel.filters.calibration.reward_hacks import POISON, PROVENANCE_HACKS, REWARD_HACKS, STUDENT
from flywheel.filters.curate import curate
from flywheel.trajectory import Trajectory
from tests.conftest import Play

EACH = 6
"""Cheats of each class."""
HONEST = 80


@pytest.fixture(scope="module")
def curated(
    smoke: Config, world: World, play: Play, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Lake, dict[str, str], list[Trajectory]]:
    """(lake after curation, cheat's id → class, honest episodes)."""
    honest = play(Expert(world), HONEST, start=1000)
    honest += play(Expert(world, Mistakes(wrong_action=0.1)), HONEST, start=1200)
    honest += play(Expert(world, Mistakes(wrong_action=0.3)), HONEST, start=1400)
    honest += play(RandomPolicy(), HONEST, start=1600)
    golden = sorted(play(Expert(world), EACH * len(REWARD_HACKS), start=2000), key=lambda trajectory: trajectory.seed)
    planted: dict[str, str] = {}
    cheats = []
    for number, (name, plant) in enumerate(REWARD_HACKS.items()):
        for place in range(number * EACH, (number + 1) * EACH):
            one = golden[place]
            cheat = plant(one, golden[place - 1], world.facts(one.task))
            planted[cheat.trajectory_id] = name
            cheats.append(cheat)
            if name == "replayed under a new id":
                honest.append(one)
    lake = Lake(tmp_path_factory.mktemp("cheats"), create=True)
    lake.append([*honest, *cheats], "episodes")
    curate(smoke, lake)
    return lake, planted, honest


def test_cheats_are_caught_and_honest_episodes_are_not_suspected(
    curated: tuple[Lake, dict[str, str], list[Trajectory]], capsys: pytest.CaptureFixture[str]
) -> None:
    lake, planted, honest = curated
    rows = lake.sql("select trajectory_id, route, verified, route_reason from trajectories").to_pylist()
    by_id = {row["trajectory_id"]: row for row in rows}
    caught = Counter(planted[one] for one in planted if not by_id[one]["verified"])
    # Of a playing and its copy, which is the copy nobody can tell: one of the two is kept out.
    caught["replayed under a new id"] = sum(row["route_reason"].startswith("copy") for row in rows)
    suspected = [
        trajectory.trajectory_id
        for trajectory in honest
        if by_id[trajectory.trajectory_id]["route"] == "quarantine"
        and not by_id[trajectory.trajectory_id]["route_reason"].startswith("copy")
    ]
    share, flagged = caught.total() / len(planted), len(suspected) / len(honest)
    with capsys.disabled():
        print(
            f"\n{len(REWARD_HACKS)} classes of reward hacks: {share:.1%} of {len(planted)} caught; "
            f"{flagged:.2%} of {len(honest)} honest episodes suspected"
        )
    assert len(REWARD_HACKS) >= 12
    assert share >= 0.95, {name: caught[name] for name in REWARD_HACKS}
    assert flagged < 0.01, suspected


def test_every_class_is_caught_more_often_than_not(
    curated: tuple[Lake, dict[str, str], list[Trajectory]],
) -> None:
    lake, planted, _ = curated
    kept = lake.sql("select trajectory_id from trajectories where verified = 1")["trajectory_id"].to_pylist()
    missed = Counter(planted[one] for one in kept if one in planted)
    assert max(missed.values(), default=0) <= EACH // 2 or set(missed) == {"replayed under a new id"}


@pytest.fixture(scope="module")
def imported(
    smoke: Config, world: World, play: Play, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Lake, dict[str, str]]:
    """(lake after an import and curation, what the document called itself → class)."""
    folder = tmp_path_factory.mktemp("documents")
    golden = sorted(
        play(Expert(world), EACH * len(PROVENANCE_HACKS), start=4000), key=lambda trajectory: trajectory.seed
    )
    named: dict[str, str] = {}
    for number, (name, plant) in enumerate(PROVENANCE_HACKS.items()):
        for place in range(number * EACH, (number + 1) * EACH):
            cheat = plant(golden[place], golden[place - 1], world.facts(golden[place].task))
            named[cheat.trajectory_id] = name
            (folder / f"{place}.json").write_text(json.dumps(atif.write(cheat, {})))
    lake = Lake(tmp_path_factory.mktemp("imported"), create=True)
    import_files(lake, [folder], "atif")
    curate(smoke, lake)
    return lake, named


def test_what_an_import_claims_neither_counts_nor_teaches(
    smoke: Config, imported: tuple[Lake, dict[str, str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lake, named = imported
    rows = lake.sql(
        """select claims->>'trajectory_id' as name, trajectory_id, ours, policy_id, purpose, iteration
           from trajectories"""
    ).to_pylist()
    ids = {row["trajectory_id"]: row["name"] for row in rows}
    taught = {}
    corpus = load_corpus(smoke, lake, 1)
    for one, cut in corpus.read(list(corpus.routes)):
        windows = [window for role in Role for window in windows_of(one, cut, Limits(), role)]
        taught[ids[one.trajectory_id]] = "".join(piece.text for window in windows for piece in window.pieces)
    export(lake, tmp_path / "rows", "sft", select_ids(lake, "route = 'supervised'"))
    rows_for_others = "".join(file.read_text() for file in (tmp_path / "rows").iterdir())
    assert taught and POISON not in rows_for_others
    counts = {row["name"]: row["ours"] or row["policy_id"] == STUDENT or row["purpose"] != "imported" for row in rows}
    caught = Counter(named[one] for one in named if not counts[one] and POISON not in taught.get(one, ""))
    share = caught.total() / len(named)
    with capsys.disabled():
        print(f"\n{len(PROVENANCE_HACKS)} classes of claims: {share:.1%} of {len(named)} neither count nor teach")
    assert len(named) == EACH * len(PROVENANCE_HACKS)
    assert share >= 0.95


def test_a_cheat_teaches_nobody(curated: tuple[Lake, dict[str, str], list[Trajectory]]) -> None:
    """Not as supervised data, nor by its segments, nor as the better half of a pair."""
    lake, planted, _ = curated
    for query in (
        "select trajectory_id from trajectories where route = 'supervised'",
        "select distinct trajectory_id from relabelled",
        "select distinct chosen from pairs",
    ):
        taught = {next(iter(row.values())) for row in lake.sql(query).to_pylist()}
        honest_twins = {one for one in planted if planted[one] == "replayed under a new id"}
        assert not taught & (planted.keys() - honest_twins)
