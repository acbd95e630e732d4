"""Agents of real frameworks, in an environment of their own."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

AGENTS = '''
import asyncio, sys

BASE_URL, INSTRUCTIONS, WORDS, RESULT = sys.argv[1:]

def look(at: str) -> str:
    """Look at something."""
    return RESULT

def open(what: str) -> str:
    """Open something."""
    return RESULT

async def openai_agents() -> None:
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=BASE_URL, api_key="sk-fw-openai-agents")
    model = OpenAIChatCompletionsModel(model="m", openai_client=client)
    tools = [function_tool(look), function_tool(open)]
    agent = Agent(name="looker", instructions=INSTRUCTIONS, tools=tools, model=model)
    print((await Runner.run(agent, WORDS)).final_output)

async def pydantic_ai() -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    provider = OpenAIProvider(base_url=BASE_URL, api_key="sk-fw-pydantic-ai")
    agent = Agent(OpenAIChatModel("m", provider=provider), instructions=INSTRUCTIONS, tools=[look, open])
    print((await agent.run(WORDS)).output)

asyncio.run(openai_agents())
asyncio.run(pydantic_ai())
'''


def ask_frameworks(folder: Path, url: str, instructions: str, words: str, result: str) -> list[str]:
    """What an agent of openai-agents and one of pydantic-ai say in the end, asked at a URL; `result`: their tools'."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "openai-agents", "pydantic-ai-slim[openai]"], check=True)
    (folder / "frameworks.py").write_text(AGENTS)
    command = [python, folder / "frameworks.py", url, instructions, words, result]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
