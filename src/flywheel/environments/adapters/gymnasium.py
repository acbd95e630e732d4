"""Gymnasium environments (https://gymnasium.farama.org): what they show as text, actions by name.

Seeds carry the split. An expert that looks at the running environment, as BabyAI's bot, can be asked from any state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

from flywheel.environments.capabilities import Advice
from flywheel.environments.protocol import Observation, Transition
from flywheel.environments.seeds import check_seed, seeds_of
from flywheel.environments.tool_environment import settings_of
from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError, named_reason
from flywheel.named_objects import named_module, named_object
from flywheel.trajectory import Split, Task, digest

NAME = "gymnasium"
PARAMETERS = ("id", "options", "imports", "actions", "render", "expert", "instruction", "success_reward", "whole_state")
_COLOURED = re.compile(r"\x1b\[[0-9;]*m(.*?)\x1b\[0m", re.DOTALL)


class GymnasiumEnvironment:
    """One environment. Implements `Environment`."""

    def __init__(self, settings: dict[str, Any], environment: Any) -> None:
        self._settings, self._gym = settings, environment
        space = environment.action_space
        kind = type(space).__name__
        count, self._first = (int(space.n), int(space.start)) if kind == "Discrete" else (None, 0)
        self._names: tuple[str, ...] | None = None
        if count is None and (kind != "Text" or settings.get("expert")):
            raise ConfigError(f"{settings['id']} acts by {space}; actions must be discrete, or text without an expert")
        if count is not None:
            self._names = tuple(settings.get("actions") or map(str, range(count)))
            if len(self._names) != count or len(set(self._names)) != count:
                raise ConfigError(f"{settings['id']} has {count} actions; name each in environment.parameters.actions")
        render = settings.get("render")
        self._render: Callable[[Any, Any], str] | None = named_object(render) if render else None

    def reset(self, task: Task) -> Observation:
        with redirect_stdout(StringIO()):  # some environments print while they draw a task
            seen, info = self._gym.reset(seed=task.seed)
        return self._look(seen, info)

    def step(self, action: str) -> Transition:
        if self._names is not None and action not in self._names:
            unknown = f"There is no action '{action[:80]}'; there are: {', '.join(self._names)}."
            return Transition(self._look(*self._last, feedback=unknown), 0.0, 0.0, terminated=False, success=False)
        chosen = action if self._names is None else self._first + self._names.index(action)
        seen, reward, terminated, truncated, info = self._gym.step(chosen)
        least = self._settings.get("success_reward")
        solved = bool(terminated) and (float(reward) > 0 if least is None else float(reward) >= least)
        looked = self._look(seen, info)
        return Transition(
            looked, float(reward), float(solved), terminated=bool(terminated or truncated), success=solved
        )

    def _look(self, seen: Any, info: dict[str, Any], feedback: str = "") -> Observation:
        self._last = seen, info
        text = self._text(seen)
        mask = info.get("action_mask")
        offered = self._names
        if self._names is not None and mask is not None:
            offered = tuple(name for name, allowed in zip(self._names, mask, strict=True) if allowed)
        key = digest(text) if self._settings.get("whole_state") else ""
        return Observation(text, feedback, whole=True, state_key=key, valid_actions=offered)

    def _text(self, seen: Any) -> str:
        """The user's words, the environment's own, or its drawing in letters, where colour becomes brackets."""
        if self._render is not None:
            return str(self._render(self._gym, seen))
        if isinstance(seen, str):
            return seen
        if self._gym.render_mode == "ansi":
            return _COLOURED.sub(r"[\1]", self._gym.render()).strip("\n")
        return str(seen)

    def close(self) -> None:
        self._gym.close()


class AdvisedEnvironment(GymnasiumEnvironment):
    """One with an expert that watches it. Implements `AdvisesLive`."""

    def __init__(self, settings: dict[str, Any], environment: Any) -> None:
        super().__init__(settings, environment)
        self._make_expert: Callable[[Any], Callable[[Any], Any]] = named_object(settings["expert"])
        self._advice: Advice | None = None
        self._fault = ""

    def reset(self, task: Task) -> Observation:
        seen = super().reset(task)
        self._fault = ""
        try:
            self._expert = self._make_expert(self._gym)
        except Exception as error:
            self._fault = named_reason(error)
        self._think(None)
        return seen

    def step(self, action: str) -> Transition:
        transition = super().step(action)
        if not transition.terminated and self._names is not None and action in self._names:
            self._think(self._first + self._names.index(action))
        return transition

    def advise(self) -> Advice | None:
        if self._fault:
            raise InfrastructureError(f"the expert broke: {self._fault}")
        return self._advice

    def _think(self, last: int | None) -> None:
        """Ask the expert, which must see every step; what it raises is told when it is asked for."""
        if self._fault:
            return
        try:
            word = self._expert(last)
            action, subgoal = word if isinstance(word, tuple) else (word, "")
            self._advice = None if action is None else Advice(self._named(int(action)), subgoal)
        except Exception as error:
            self._fault = named_reason(error)

    def _named(self, action: int) -> str:
        assert self._names is not None
        return self._names[action - self._first]


class GymnasiumWorld:
    """Makes environments of one id. Implements `MakesTasks` and `FindsTasks`."""

    def __init__(self, settings: dict[str, Any], parameters: str, make: Callable[[], Any]) -> None:
        self._settings, self._parameters, self._make = settings, parameters, make
        self._environments: list[GymnasiumEnvironment] = []

    def environments(self, count: int) -> Sequence[GymnasiumEnvironment]:
        kind = AdvisedEnvironment if self._settings.get("expert") else GymnasiumEnvironment
        while len(self._environments) < count:
            self._environments.append(kind(self._settings, self._make()))
        return self._environments[:count]

    def tasks(self, split: Split, start: int, count: int) -> tuple[Task, ...]:
        return tuple(self.find(split, seed) for seed in seeds_of(split, start, count))

    def find(self, split: Split, seed: int) -> Task:
        check_seed(split, seed)
        instruction = self._settings.get("instruction", self._settings["id"])
        return Task(NAME, self._parameters, split, seed, instruction, family=self._settings["id"])

    def close(self) -> None:
        for environment in self._environments:
            environment.close()


@contextmanager
def open_world(parameters: str) -> Iterator[GymnasiumWorld]:
    """`id` and `options`: for `gymnasium.make`; `imports`: modules that register it. `actions`: names of the discrete
    ones. `render(environment, observation)`: the text to show, as module:function. `expert(environment)`: makes a
    function that is given the last action, or None, and says the next one, or (the next one, its subgoal). A task
    counts as solved when it ends with a reward above 0, or of at least `success_reward`. `whole_state`: does the text
    show all of the state?"""
    settings = settings_of(parameters, NAME, PARAMETERS, ("id",))
    try:
        import gymnasium
    except ImportError as error:
        raise PrerequisiteError(
            "the gymnasium environment needs gymnasium: pip install 'trajectory-flywheel[gymnasium]'"
        ) from error
    for module in settings.get("imports", ()):
        _imported(module)
    options = settings.get("options", {})

    def make() -> Any:
        try:
            spec = gymnasium.spec(settings["id"])
            drawn = {} if settings.get("render") or not _draws(spec) else {"render_mode": "ansi"}
            return gymnasium.make(settings["id"], max_episode_steps=-1, **{**drawn, **options})
        except gymnasium.error.Error as error:
            raise ConfigError(f"gymnasium: {' '.join(str(error).split())}") from error

    world = GymnasiumWorld(settings, parameters, make)
    try:
        yield world
    finally:
        world.close()


def _imported(module: str) -> None:
    try:
        named_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"environment.parameters.imports: {error}") from error


def _draws(spec: Any) -> bool:
    """Can the environment draw itself in letters?"""
    from gymnasium.envs.registration import load_env_creator

    entry = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    return "ansi" in getattr(entry, "metadata", {}).get("render_modes", ())
