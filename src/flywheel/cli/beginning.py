"""`flywheel init`: a first config, by three questions."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flywheel.cli.console import AsJson, say
from flywheel.errors import ConfigError


class Door(StrEnum):
    """What one has."""

    ENVIRONMENT = "environment"
    AGENT = "agent"
    LOGS = "logs"


QUESTIONS = {
    Door.ENVIRONMENT: ("Which environment? (see: flywheel env list)", "cookingworld"),
    Door.AGENT: ("Where is your agent's model served?", "http://127.0.0.1:8000/v1"),
    Door.LOGS: ("In which format are the logs?", "chat"),
}
"""What is asked of each, and the usual answer."""
HEAD = """# Written by flywheel init; every other setting has a default: docs/operating.md, docs/distillation.md.
name = "{name}"
data_dir = "data/{name}"
"""
TEXTS = {
    Door.ENVIRONMENT: """
[environment]
name = "{answer}"
max_steps = 60
parallel = 16
{parameters}
[collect]
episodes = 200
teachers = {{ expert = 1 }}

[evaluate]
dev_tasks = 60
test_tasks = 60
""",
    Door.AGENT: """
[environment]
name = "gateway/{name}"

[gateway]
app = "{name}"
upstream = "{answer}"
# Dollars a million tokens; without them the cost of a run is unknown.
# price_prompt = 2.5
# price_completion = 10.0

[curate]
# An outcome that was reported decides; a judge can stand in for it: docs/howto/own-agent-logs.md.
verifiers = ["outcome"]
""",
    Door.LOGS: """
[environment]
name = "imported/{answer}"

[curate]
# Add a judge with a rubric of yours: docs/howto/own-agent-logs.md.
verifiers = ["outcome"]
""",
}
PARAMETERS = {
    "cookingworld": """
# A small kitchen; drop this for the standard one.
[environment.parameters]
numLocations = 2
numIngredients = 2
includeDoors = 0
""",
    "gymnasium": """
[environment.parameters]
id = "BabyAI-GoToLocalS8N7-v0"
imports = ["minigrid"]
actions = ["left", "right", "forward", "pick up", "drop", "toggle", "done"]
render = "flywheel.environments.adapters.babyai:text"
expert = "flywheel.environments.adapters.babyai:expert"
instruction = "Do what the mission says."
""",
    "miniwob": """
[environment.parameters]
chain = 3
""",
}
NEXT = {
    Door.ENVIRONMENT: ["flywheel doctor {file}", "flywheel run {file}", "flywheel ui --data-dir data/{name}"],
    Door.AGENT: ["flywheel doctor {file}", "flywheel gateway {file}", "flywheel ui --data-dir data/{name}"],
    Door.LOGS: [
        "flywheel import LOGS --format {answer} --data-dir data/{name}",
        "flywheel doctor {file}",
        "flywheel ui --data-dir data/{name}",
    ],
}
"""What one types next."""


def init(
    door: Annotated[Door | None, typer.Option(help="What you have: an environment, an agent, or its logs.")] = None,
    name: Annotated[str, typer.Option(help="Of the flywheel, its config and its data directory.")] = "",
    answer: Annotated[
        str, typer.Option(help="The environment, the address of the agent's model, or the logs' format.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Write a first config into the current folder; what is not told by options is asked."""
    chosen = door or Door(
        _asked("What have you got: an environment, an agent, or logs?", "environment", "--door", Door)
    )
    question, usual = QUESTIONS[chosen]
    answer = answer or _asked(question, usual, "--answer")
    name = name or _asked("What shall it be called?", "first", "--name")
    text = _text(chosen, name, answer)
    file = Path(f"{name}.toml")
    try:
        with file.open("x", encoding="utf-8") as config:
            config.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} is there already; name another with --name") from None
    steps = [step.format(file=file, name=name, answer=answer) for step in NEXT[chosen]]
    if as_json:
        say({"written": str(file), "next": steps}, as_json)
    else:
        say([f"{file} is written. Next, type:", *(f"  {step}" for step in steps)], as_json)


def _asked(question: str, usual: str, option: str, among: type[Door] | None = None) -> str:
    """An answer from the terminal. Raises `ConfigError` where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Tell with {option}, as {option} {usual}")
    while True:
        answer = str(typer.prompt(question, default=usual)).strip()
        if among is None or answer in list(among):
            return answer
        print(f"one of: {', '.join(among)}", file=sys.stderr)


def _text(door: Door, name: str, answer: str) -> str:
    """The config, held to the rules of configs. Raises `ConfigError` for a name or an answer that breaks them."""
    import tomllib

    from flywheel.config.root import make

    if not name.replace("-", "").replace("_", "").isalnum() or name != name.lower() or not name.isascii():
        raise ConfigError(f"'{name}' cannot name a flywheel; use small letters, digits and -, as first")
    if '"' in answer or "\\" in answer or not answer.isprintable():
        raise ConfigError(f"'{answer}' cannot stand in a config; leave quotes and control characters out")
    text = HEAD + TEXTS[door]
    text = text.format(name=name, answer=answer, parameters=PARAMETERS.get(answer, ""))
    make(tomllib.loads(text))
    return text
