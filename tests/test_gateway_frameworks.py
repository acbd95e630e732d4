"""Agents of real frameworks, recorded without a line changed but the base URL and the key; and the helpdesk example."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from flywheel.datasets.lake.lake import Lake
from tests.gateways import recording
from tests.scripted_model import scripted_model

ROOT = Path(__file__).parents[1]
AGENTS = '''
import asyncio, sys

BASE_URL, WORDS = sys.argv[1], "what is there?"

def look(at: str) -> str:
    """Look at something."""
    return f"a lamp at {at}"

async def openai_agents() -> None:
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=BASE_URL, api_key="sk-fw-openai-agents")
    model = OpenAIChatCompletionsModel(model="m", openai_client=client)
    agent = Agent(name="looker", instructions="You look.", tools=[function_tool(look)], model=model)
    print((await Runner.run(agent, WORDS)).final_output)

async def pydantic_ai() -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    provider = OpenAIProvider(base_url=BASE_URL, api_key="sk-fw-pydantic-ai")
    agent = Agent(OpenAIChatModel("m", provider=provider), instructions="You look.", tools=[look])
    print((await agent.run(WORDS)).output)

asyncio.run(openai_agents())
asyncio.run(pydantic_ai())
'''


@pytest.mark.slow
def test_two_frameworks_are_recorded_as_they_are(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "openai-agents", "pydantic-ai-slim[openai]"], check=True)
    (tmp_path / "frameworks.py").write_text(AGENTS)
    with scripted_model() as url, recording(tmp_path / "lake", url) as recorder:
        done = subprocess.run(
            [python, tmp_path / "frameworks.py", recorder.url], capture_output=True, text=True, check=True
        )
        trajectories = recorder.trajectories()
    assert done.stdout.splitlines() == ["I hear a lamp at what is there? after 4 messages"] * 2
    assert [trajectory.task_name for trajectory in trajectories] == ["openai-agents", "pydantic-ai"]
    for trajectory in trajectories:
        assert (trajectory.length, trajectory.system) == (2, "You look.")
        assert trajectory.steps[0].action == 'look {"at": "what is there?"}'


@pytest.mark.slow
def test_the_helpdesk_runs_and_is_verified(tmp_path: Path) -> None:
    """The example's own script, on a few tickets."""
    script = ROOT / "examples" / "helpdesk" / "play.py"
    command = [sys.executable, script, "--sessions", "12", "--mistakes", "0.4", "--data-dir", tmp_path / "lake"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "12 sessions" in done.stdout
    with Lake.open(tmp_path / "lake") as lake:
        rows = lake.sql("select success, route, length, cost, tools is not null as tools from trajectories").to_pylist()
        calls = lake.sql("select count(*) as n from tool_calls where result is null").to_pylist()
    assert len(rows) == 12 and calls == [{"n": 0}]
    assert {row["success"] for row in rows} == {True, False}
    assert all(5 <= row["length"] <= 20 and row["cost"] > 0 and row["tools"] and row["route"] for row in rows)
