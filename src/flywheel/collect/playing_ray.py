"""Playing episodes on a Ray cluster: each actor has a simulator, a policy and a connection to the lake of its own.

Ids are deterministic and commits exactly-once, so an actor whose machine is gone is started elsewhere and plays its
part again. The lake is where every machine sees it; students travel with the order.
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
from flywheel.environments.catalog import canonical, open_world
from flywheel.errors import FlywheelError
from flywheel.policies.card import POLICY_FILE
from flywheel.policies.factory import HUMAN, NAMES, TUTORED, make_policy
from flywheel.policies.registry import policy_directory
from flywheel.rollouts.episode import Job, Origin, id_of
from flywheel.rollouts.play import RolloutHooks, broken, play
from flywheel.runtime.ray_cluster import actors, as_they_come
from flywheel.trajectory import Split, Task

PARTS = 4
"""An actor's share of the episodes comes in so many parts, so that none waits long for the slowest."""
LEAST = 8
"""Episodes of a part: what is played together is decided together."""
CHECKPOINTS = ".checkpoint"
"""The suffix of folders that hold a training run, and no part of a student."""


def travels(policy: Policy) -> bool:
    """Can another machine play it? Not a person, nor a student whose models are behind servers."""
    if isinstance(policy, FlatAgent | HierarchicalAgent):
        return policy.is_local
    return policy.name != HUMAN


def play_on_ray(
    config: Config,
    lake: Lake,
    policy: Policy,
    jobs: Sequence[Job],
    origin: Origin,
    progress: Callable[[int], None],
    hooks: RolloutHooks,
) -> list[str]:
    """`agents.collect.play`, by the actors of a cluster."""
    assign(lake, [job.task for job in jobs])
    ids = [id_of(job, policy, origin) for job in jobs]
    done = lake.known_ids(ids) - set(broken(lake, ids))
    new = [job for one, job in zip(ids, jobs, strict=True) if one not in done]
    progress(len(done))
    played: list[str] = []

    def heard(answer: tuple[list[str], int]) -> None:
        played.extend(answer[0])
        progress(answer[1])

    if new:
        count = min(config.cluster.actors, -(-len(new) // LEAST))
        size = max(LEAST, -(-len(new) // (PARTS * count)))
        with actors(config.cluster.ray, count, Player, *_order(config, lake, policy, origin)) as made:
            as_they_come(made, "play", _parts(new, size, hooks), heard)
    return list(dict.fromkeys([*ids, *played]))


def _parts(jobs: Sequence[Job], size: int, hooks: RolloutHooks) -> Iterator[list[Any]]:
    for start in range(0, len(jobs), size):
        if hooks.enough is not None and hooks.enough():
            return
        yield [[asdict(job.task), job.attempt] for job in jobs[start : start + size]]


def _order(config: Config, lake: Lake, policy: Policy, origin: Origin) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What an actor needs to know, and the files of the student among it."""
    absolute = config.model_copy(update={"data_dir": config.data_dir.absolute()})
    by_name = policy.name in NAMES
    order = {
        "config": absolute.model_dump(mode="json"),
        "policy": policy.name if by_name else policy.policy_id,
        "version": policy.version,
        "origin": asdict(origin),
    }
    student = origin.parent_policy_id if policy.name == TUTORED else policy.policy_id
    folder = policy_directory(lake, student)
    files = {path.relative_to(folder.parent): path for path in sorted(folder.rglob("*")) if path.is_file()}
    whole = {name: path for name, path in files.items() if not any(part.endswith(CHECKPOINTS) for part in name.parts)}
    return order, {str(name): path.read_bytes() for name, path in whole.items()}


class Player:
    """An actor: plays the parts that it is given."""

    def __init__(self, order: dict[str, Any], files: dict[str, bytes]) -> None:
        self._stack = ExitStack()
        config = Config.model_validate(order["config"])
        if config.lake.url:  # data_dir is another machine's
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            config = config.model_copy(update={"data_dir": folder})
        self._config, self._lake = config, Lake.of(config)
        self._origin = Origin(**order["origin"])
        _unpack(files, self._lake.root / "policies")
        world = open_world(config.environment.name, canonical(config.environment.parameters))
        self._world = self._stack.enter_context(world)
        self._policy = make_policy(config, self._lake, self._world, order["policy"], self._origin.parent_policy_id)
        if self._policy.version != order["version"]:
            raise FlywheelError(f"{order['policy']} decides otherwise on the cluster than where it was asked for")

    def close(self) -> None:
        self._stack.close()

    def play(self, part: list[Any]) -> tuple[list[str], int]:
        """Ids of what was played, and of how many jobs."""
        jobs = [Job(Task(**{**task, "split": Split(task["split"])}), attempt) for task, attempt in part]
        return play(self._config, self._lake, self._world, self._policy, jobs, self._origin), len(jobs)


def _unpack(files: dict[str, bytes], folder: Path) -> None:
    """Write a student's files where they are missing; the one that says it is whole comes last."""
    for name, data in sorted(files.items(), key=lambda one: one[0].endswith(POLICY_FILE)):
        path = folder / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as aside:
            aside.write(data)
        Path(aside.name).rename(path)
