"""The inside of a worker process: one world, its environments by number, a line of JSON in, a line out.

    python -m flywheel.rollouts.worker cookingworld '{"numLocations":3}'

Each line is `["reset", slot, task]` or `["step", slot, action]`; each answer `["ok", value]`, `["broken", reason]`,
`["refused", reason]` or `["missing", reason]`. Whatever an environment prints goes to stderr. When nobody listens any
more, the process ends with all that it has started.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from typing import Any

from flywheel.environments.catalog import open_world
from flywheel.environments.protocol import Environment, World
from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError
from flywheel.trajectory import Split, Task


def main(environment: str, parameters: str) -> None:
    """Answer until the other side is gone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    questions: queue.Queue[list[Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = questions.get()
    try:
        with open_world(environment, parameters) as world:
            environments: dict[int, Environment] = {}
            question = first
            while True:
                print(json.dumps(_answer(world, environments, question)), file=answers, flush=True)
                question = questions.get()
    except ConfigError as error:
        _refuse(answers, questions, "refused", str(error))
    except PrerequisiteError as error:
        _refuse(answers, questions, "missing", str(error))


def _answer(world: World, environments: dict[int, Environment], question: list[Any]) -> list[Any]:
    what, slot, argument = question
    try:
        if slot not in environments:
            wanted = max([slot, *environments]) + 1
            environments.update(enumerate(world.environments(wanted)))
        if what == "reset":
            return ["ok", asdict(environments[slot].reset(Task(**{**argument, "split": Split(argument["split"])})))]
        return ["ok", asdict(environments[slot].step(argument))]
    except InfrastructureError as error:
        return ["broken", str(error)]


def _refuse(answers: Any, questions: queue.Queue[list[Any]], kind: str, reason: str) -> None:
    """Give every question the reason why there is no world."""
    while True:
        print(json.dumps([kind, reason]), file=answers, flush=True)
        questions.get()


def _listen(questions: queue.Queue[list[Any]]) -> None:
    for line in sys.stdin:
        questions.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
