"""The gate where nothing can be played: students are held against recorded sessions, and promoted if they hold them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.gateway import AgentConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.errors import ConfigError, PolicyError
from flywheel.evaluation.promotion import gate, opponent_of
from flywheel.evaluation.replay_gate import RECORD
from flywheel.filters.curate import curate
from flywheel.gateway.agents import agent_tasks
from flywheel.policies.registry import RANDOM, champion
from flywheel.trajectory import Split
from tests.door_agent import config_of, task_rows
from tests.test_agent_world import played

SESSIONS = 14


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "door_agent", raising=False)
    return config_of(tmp_path, task_rows(60))


@pytest.fixture
def recorded(config: Config) -> Iterator[tuple[Config, Lake]]:
    """Sessions of an agent that is not here, and a config that can only read them."""
    with Lake.of(config, create=True) as lake:
        for split, count in ((Split.TRAIN, 24), (Split.DEV, SESSIONS)):
            sessions = played(config, agent_tasks(config, split, 0, count))
            lake.append([replace(session, purpose="recorded") for session in sessions], "recorded")
        curate(config, lake)
        yield config.model_copy(update={"agent": AgentConfig()}), lake


def with_epochs(config: Config, flat: int) -> Config:
    epochs = config.train.epochs.model_copy(update={"flat": flat})
    gate_config = config.gate.model_copy(update={"margin": 0.4})
    return config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs}), "gate": gate_config})


def test_a_student_that_holds_the_sessions_is_promoted_and_one_that_does_not_is_not(
    recorded: tuple[Config, Lake],
) -> None:
    config, lake = recorded
    assert opponent_of(config, RANDOM) == RECORD
    green, learned = (distill(with_epochs(config, epochs), lake, "flat", 1).policy_id for epochs in (1, 60))
    (refused,) = gate(with_epochs(config, 1), lake, [green], RECORD, 1)
    assert (refused.tasks, refused.champion_rate, refused.promoted) == (SESSIONS, 1.0, False)
    assert refused.losses > SESSIONS / 2 and champion(lake) == RANDOM
    assert {part.name for part in refused.slices} == {"2 to 3 answers", "look", "open"}
    (promoted,) = gate(with_epochs(config, 60), lake, [learned], RECORD, 1)
    assert promoted.challenger_rate == 1.0 and promoted.promoted and "no worse by 40%" in promoted.sentence
    assert champion(lake) == learned
    with pytest.raises(PolicyError, match="is the champion already"):
        gate(with_epochs(config, 60), lake, [learned], learned, 2)
    (again,) = gate(with_epochs(config, 1), lake, [green], opponent_of(config, learned), 2)
    assert not again.promoted and again.losses == refused.losses, "the champion holds what the record holds"


def test_without_a_held_out_session_nothing_is_decided(config: Config) -> None:
    with Lake.of(config, create=True) as lake:
        sessions = played(config, agent_tasks(config, Split.TRAIN, 0, 4))
        lake.append([replace(session, purpose="recorded") for session in sessions], "recorded")
        curate(config, lake)
        only_recorded = with_epochs(config.model_copy(update={"agent": AgentConfig()}), 1)
        student = distill(only_recorded, lake, "flat", 1).policy_id
        with pytest.raises(ConfigError, match="held out as dev"):
            gate(only_recorded, lake, [student], RECORD, 1)
        without_margin = only_recorded.model_copy(update={"gate": config.gate})
        with pytest.raises(ConfigError, match=r"set gate\.margin"):
            gate(without_margin, lake, [student], RECORD, 1)
        assert lake.sql("from gates").num_rows == 0


def test_the_command_says_whom_it_would_meet(recorded: tuple[Config, Lake], tmp_path: Path) -> None:
    config, lake = recorded
    student = distill(config, lake, "flat", 1).policy_id
    (tmp_path / "agent.toml").write_text(
        f"""name = "doors"\ndata_dir = "{config.data_dir}"\n[environment]\nname = "gateway/doors"\n"""
        """[gateway]\napp = "doors"\n[curate]\nverifiers = ["outcome"]\n"""
    )
    shown = CliRunner().invoke(app, ["promote", "agent.toml", student, "--dry-run"])
    assert shown.exit_code == 0, (shown.output, shown.exception)
    assert "champion: recorded" in shown.output
