"""The same episodes, scheduled by Inspect: run by the Python of an environment of its own (see rollouts.py).

PYTHONPATH=src INSPECT_PYTHON benchmarks/inspect_rollouts.py URL MODEL PARAMETERS FIRST COUNT CONCURRENT STEPS
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from typing import Any

from inspect_ai import Task as Evaluation
from inspect_ai import eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.solver import Generate, TaskState, solver

from flywheel.agents.contexts.chat_format import parse_answer, render_observation
from flywheel.environments.catalog import open_world
from flywheel.trajectory import Split

URL, MODEL, PARAMETERS = sys.argv[1:4]
FIRST, COUNT, CONCURRENT, STEPS = map(int, sys.argv[4:8])


def main() -> None:
    os.environ |= {"FLYWHEEL_BASE_URL": URL, "FLYWHEEL_API_KEY": "none", "INSPECT_DISPLAY": "none"}
    done = {"steps": 0, "success": 0}
    with open_world("cookingworld", PARAMETERS) as world, tempfile.TemporaryDirectory() as logs:
        tasks = world.tasks(Split.TRAIN, FIRST, COUNT)
        idle = list(world.environments(CONCURRENT))

        @solver
        def play() -> Any:
            async def solve(state: TaskState, generate: Generate) -> TaskState:
                game, task = idle.pop(), tasks[int(state.sample_id)]
                seen = await asyncio.to_thread(game.reset, task)
                state.messages = [ChatMessageSystem(content=task.instruction)]
                for _ in range(STEPS):
                    state.messages.append(ChatMessageUser(content=render_observation(seen, whole=True)))
                    state = await generate(state)
                    said = parse_answer(state.output.completion, seen.valid_actions)
                    if said is None:
                        break
                    told = await asyncio.to_thread(game.step, said.action)
                    seen = told.observation
                    done["steps"] += 1
                    if told.terminated:
                        done["success"] += told.success
                        break
                idle.append(game)
                return state

            return solve

        samples = [Sample(input="go", id=number) for number in range(COUNT)]
        began = time.perf_counter()
        (log,) = evaluate(
            Evaluation(dataset=samples, solver=play(), message_limit=None),
            model=f"openai-api/flywheel/{MODEL}",
            max_samples=CONCURRENT,
            max_connections=CONCURRENT,
            log_dir=logs,
            score=False,
        )
        seconds = time.perf_counter() - began
    print(json.dumps({**done, "seconds": seconds, "status": log.status, "error": str(log.error or "")}))


if __name__ == "__main__":
    main()
