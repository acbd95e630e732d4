"""Playing episodes in several processes, of this machine or of a Ray cluster.

Each has a model, a simulator and a connection to the lake of its own. One process decides on one core at a time, so
more of them play faster. Ids are deterministic and commits exactly-once, so one that is killed costs nothing but its
unfinished episodes. The lake is where every machine sees it; students travel to other machines with the work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flywheel.agents.policy import Policy
from flywheel.agents.student import FlatAgent, HierarchicalAgent
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.splits import assign
from flywheel.environments.catalog import open_configured
from flywheel.environments.protocol import World
from flywheel.errors import FlywheelError
from flywheel.policies.card import POLICY_FILE
from flywheel.policies.factory import HUMAN, NAMES, TUTORED, make_policy
from flywheel.policies.registry import policy_directory
from flywheel.rollouts.episode import Job, Origin, id_of
from flywheel.rollouts.play import RolloutHooks, broken, play
from flywheel.runtime.workers import Caller, as_completed, open_workers

MIN_EPISODES_PER_PROCESS = 48
"""Episodes below which a process more, or a cluster, is not worth its start."""
PARTS_PER_ACTOR = 4
"""On a cluster, an actor's share of the episodes comes in so many parts, so that none waits long for the slowest."""
MIN_PART = 8
"""Episodes of a part: what is played together is decided together."""
CHECKPOINTS = ".checkpoint"
"""The suffix of folders that hold a training run, and no part of a student."""


def play_parallel(
    config: Config,
    lake: Lake,
    world: World,
    policy: Policy,
    jobs: Sequence[Job],
    origin: Origin,
    progress: Callable[[int], None],
    hooks: RolloutHooks,
) -> list[str]:
    """`play`, on a Ray cluster if there is one (`cluster.ray`); else with a student's episodes dealt out to
    `environment.processes` processes.

    Only where another process can load the policy, and no auditor or callback takes part.
    """
    if not config.cluster.ray and config.environment.processes < 2:
        return play(config, lake, world, policy, jobs, origin, progress, hooks)
    assign(lake, [job.task for job in jobs])
    ids = [id_of(job, policy, origin) for job in jobs]
    known = lake.known_ids(ids)
    done = known - set(broken(lake, known))
    new = [job for trajectory_id, job in zip(ids, jobs, strict=True) if trajectory_id not in done]
    processes, size = _division(config, policy, len(new), hooks)
    if not processes:
        return play(config, lake, world, policy, jobs, origin, progress, hooks)
    progress(len(done))

    def report(finished: int) -> bool:
        progress(finished)
        return hooks.enough is None or not hooks.enough()

    ray, played = config.cluster.ray, list[str]()
    order, files = _order(config, policy, origin), _files(lake, policy, origin) if ray else {}
    with open_workers(processes, Player, order, files, ray=ray) as workers:
        for part in as_completed(workers, "play", _parts(new, size, hooks), report):
            played += part
    return list(dict.fromkeys([*ids, *played]))


def _division(config: Config, policy: Policy, episodes: int, hooks: RolloutHooks) -> tuple[int, int]:
    """Among how many processes so many episodes are divided, and how many of them are a part; zeros for none."""
    student = policy if isinstance(policy, FlatAgent | HierarchicalAgent) else None
    loads_elsewhere = student.is_local if student else policy.name != HUMAN
    if episodes < MIN_EPISODES_PER_PROCESS or not loads_elsewhere or hooks.auditor is not None or hooks.callbacks:
        return 0, 0
    if config.cluster.ray:
        actors = min(config.cluster.actors, -(-episodes // MIN_PART))
        return actors, max(MIN_PART, -(-episodes // (PARTS_PER_ACTOR * actors)))
    processes = min(config.environment.processes, episodes // MIN_EPISODES_PER_PROCESS)
    return (processes, -(-episodes // processes)) if student and processes > 1 else (0, 0)


def _parts(jobs: Sequence[Job], size: int, hooks: RolloutHooks) -> Iterator[Sequence[Job]]:
    for start in range(0, len(jobs), size):
        if hooks.enough is not None and hooks.enough():
            return
        yield jobs[start : start + size]


def _order(config: Config, policy: Policy, origin: Origin) -> dict[str, Any]:
    """What a player needs to know."""
    absolute = config.model_copy(update={"data_dir": config.data_dir.absolute()})
    return {
        "config": absolute.model_dump(mode="json"),
        "policy": policy.name if policy.name in NAMES else policy.policy_id,
        "version": policy.version,
        "origin": asdict(origin),
    }


def _files(lake: Lake, policy: Policy, origin: Origin) -> dict[str, bytes]:
    """The files of the student that plays, by their path in the folder of policies."""
    student = origin.parent_policy_id if policy.name == TUTORED else policy.policy_id
    folder = policy_directory(lake, student)
    files = {path.relative_to(folder.parent): path for path in sorted(folder.rglob("*")) if path.is_file()}
    whole = {name: path for name, path in files.items() if not any(part.endswith(CHECKPOINTS) for part in name.parts)}
    return {str(name): path.read_bytes() for name, path in whole.items()}


class Player:
    """Plays the parts that it is given. `files`: those of a student from another machine."""

    def __init__(self, order: dict[str, Any], files: dict[str, bytes]) -> None:
        self._stack = ExitStack()
        config = Config.model_validate(order["config"])
        if files and config.lake.url:  # data_dir is another machine's
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            config = config.model_copy(update={"data_dir": folder})
        self._config, self._lake = config, Lake.of(config)
        self._origin = Origin(**order["origin"])
        _unpack(files, self._lake.root / "policies")
        world = open_configured(config)
        self._world = self._stack.enter_context(world)
        self._policy = make_policy(config, self._lake, self._world, order["policy"], self._origin.parent_policy_id)
        if self._policy.version != order["version"]:
            raise FlywheelError(f"{order['policy']} decides otherwise in a worker than where it was asked for")

    def close(self) -> None:
        self._stack.close()

    def play(self, jobs: Sequence[Job], caller: Caller) -> list[str]:
        """The ids of what was played; finished episodes are reported as they are committed."""
        hooks = RolloutHooks(enough=caller.stopped)
        return play(self._config, self._lake, self._world, self._policy, jobs, self._origin, caller.report, hooks)


def _unpack(files: dict[str, bytes], folder: Path) -> None:
    """Write a student's files where they are missing; the one that says it is whole comes last."""
    for name, data in sorted(files.items(), key=lambda file: file[0].endswith(POLICY_FILE)):
        path = folder / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as aside:
            aside.write(data)
        Path(aside.name).rename(path)
