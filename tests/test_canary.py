"""Privileged facts stay behind their door: their mark reaches no prompt, no training row, no student, export or log."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flywheel.agents.contexts.history import Limits
from flywheel.agents.contexts.prompts import Role
from flywheel.agents.scripted import Expert, Mistakes
from flywheel.config.root import Config
from flywheel.datasets.formats.catalog import DOCUMENTS, LINES, TUNING
from flywheel.datasets.formats.exporting import export, select_ids
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.show import describe_trajectory
from flywheel.distill.batching.examples import windows_of
from flywheel.distill.stage import distill
from flywheel.environments.privileged import CANARY, canary
from flywheel.environments.protocol import World
from flywheel.filters.batch import batch_of
from flywheel.filters.calibration.reward_hacks import leaked_mark
from flywheel.filters.curate import curate
from flywheel.filters.segments import segment
from flywheel.filters.verifiers.integrity import Integrity
from flywheel.filters.verifiers.privileged import Privileged
from flywheel.rollouts.episode import Job, Origin
from flywheel.trajectory import Split, Trajectory
from tests.conftest import Play

FORMATS = sorted({*DOCUMENTS, *LINES, *TUNING, "sft", "sharegpt", "parquet"} - {"dpo"})


def test_the_mark_is_among_the_facts_and_verifiers_know_it(world: World, golden: list[Trajectory], play: Play) -> None:
    one = golden[0]
    facts = world.facts(one.task)
    assert facts.canary == canary(one.task)
    assert facts.canary.startswith(CANARY)
    leaked = batch_of([leaked_mark(one, golden[1], facts)])
    assert Privileged(world).verify(leaked)[0].integrity == 0
    assert Integrity().verify(leaked)[0].integrity < 1


def test_the_mark_reaches_nothing(
    smoke: Config,
    world: World,
    lake: Lake,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    from flywheel.rollouts.play import play as play_into

    jobs = [Job(task) for task in world.tasks(Split.TRAIN, 0, 6)]
    play_into(smoke, lake, world, Expert(world, Mistakes(wrong_action=0.1)), jobs, Origin(1, "collect", "canary"))
    curate(smoke, lake)
    ids = select_ids(lake, "true")
    episodes = lake.trajectories(ids)
    assert CANARY not in repr([asdict(episode) for episode in episodes])
    for episode in episodes:
        for role in Role:
            for window in windows_of(episode, segment(episode), Limits(), role):
                assert CANARY not in "".join(piece.spelling for piece in window.pieces)
    card = distill(smoke, lake, "flat", 1)
    for format in FORMATS:
        export(lake, tmp_path / "exports" / format, format, ids)
    shown = [describe_trajectory(lake, trajectory_id) for trajectory_id in ids]
    assert CANARY not in repr((card, shown))
    read = 0
    for path in [*lake.root.rglob("*"), *(tmp_path / "exports").rglob("*")]:
        if path.suffix == ".parquet":
            assert CANARY not in str(pq.read_table(path).to_pylist()), path
        elif path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
        read += path.is_file()
    assert read > 20
    assert CANARY not in caplog.text
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
