"""Schedules: a served flywheel turns by itself, can be paused, started by hand, killed and served again."""

from __future__ import annotations

import subprocess
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from flywheel.config.flows import ServeConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import ConfigError
from tests.served import FLYWHEEL, ROOT, SMOKE, serving

QUICKSTART = ROOT / "configs" / "quickstart.toml"
SMALL = (
    "collect.episodes=24",
    "collect.later_episodes=12",
    "evaluate.dev_tasks=6",
    "evaluate.test_tasks=6",
    "student.hidden=32",
    "student.layers=1",
    "student.heads=2",
    "train.epochs={planner=1,executor=1,flat=1}",
    "train.later_epochs={planner=1,executor=1,flat=1}",
)
"""The quickstart, with fewer episodes and smaller students."""


def _ticks(config: Config, **serve: object) -> list[datetime]:
    from flywheel.flows.schedules import ticks

    settings = config.model_copy(update={"serve": ServeConfig.model_validate(serve)})
    return [datetime.fromisoformat(tick) for tick in ticks(settings, 3)]


def test_every_kind_of_schedule_ticks(smoke: Config) -> None:
    nightly = _ticks(smoke)
    assert {(one.hour, one.minute) for one in nightly} == {(2, 0)}
    assert nightly[1] - nightly[0] == timedelta(days=1)
    two = _ticks(smoke, interval=120)
    assert two[2] - two[1] == timedelta(minutes=2)
    sundays = _ticks(smoke, rrule="FREQ=WEEKLY;BYDAY=SU;BYHOUR=3;BYMINUTE=0;BYSECOND=0")
    assert {sunday.weekday() for sunday in sundays} == {6}
    zone = _ticks(smoke, cron="0 9 * * *", timezone="Asia/Tokyo")
    assert {one.utcoffset() for one in zone} == {timedelta(hours=9)}


@pytest.mark.parametrize(
    "serve", [{"cron": "x y"}, {"rrule": "FREQ=SOMETIMES"}, {"cron": "0 2 * * *", "timezone": "Mars/Olympus"}]
)
def test_what_is_no_schedule_is_refused_in_one_line(smoke: Config, serve: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"^serve: [^\n]+$"):
        _ticks(smoke, **serve)


def test_two_schedules_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        ServeConfig.model_validate({"cron": "* * * * *", "interval": 60})


def test_steering_what_nobody_serves_says_what_to_do(tmp_path: Path) -> None:
    for command in ("pause", "resume", "trigger"):
        told = subprocess.run(
            [FLYWHEEL, command, str(SMOKE), "--set", f"data_dir={tmp_path / 'none'}", "--set", "serve.port=1"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert told.returncode == 2
        assert told.stderr.count("\n") == 1
        assert "flywheel serve CONFIG" in told.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_three_iterations_unattended_every_two_minutes(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "serve.cron='*/2 * * * *'", *SMALL, config=QUICKSTART) as served:
        served.until(lambda: bool(served.events("turn.finished")))
        served.told("pause")
        count = len(served.events("turn.finished"))
        time.sleep(130)  # a tick passes
        assert len(served.events("turn.finished")) == count
        served.told("resume")
        served.until(lambda: len(served.events("turn.finished")) >= 3, seconds=600)
        assert served.status()["iterations_finished"][:3] == [1, 2, 3]
    done = Lake(tmp_path / "data").sql("select iteration from iterations where finished_at is not null order by all")
    assert done["iteration"].to_pylist()[:3] == [1, 2, 3]


@pytest.mark.slow
def test_a_tick_during_a_turn_is_skipped_or_waits(tmp_path: Path) -> None:
    for late in ("skip", "queue"):
        with serving(tmp_path / late / "data", "serve.interval=15", f"serve.late='{late}'") as served:
            served.until(lambda: len(served.events("turn.finished")) >= 2)
            assert served.status()["iterations_finished"][:2] == [1, 2]
            states = _states(tmp_path / late / "data")
        assert ("Cancelled" in states) is (late == "skip")


def _states(data: Path) -> set[str]:
    import sqlite3

    with sqlite3.connect(data / "prefect" / "prefect.db") as database:
        found = {name for (name,) in database.execute("select state_name from flow_run")}
    database.close()
    return found
