"""Playing a student's episodes in several processes, each with its own model, simulator and connection to the lake.

One process decides on one core at a time, so more of them play faster. Ids are deterministic and commits exactly-once,
so a process that is killed costs nothing but its unfinished episodes.

    python -m flywheel.collect.playing_processes < ORDER

A child reads one line of JSON, its order, plays it, and says how many more episodes are done, a line each time. One
more line tells it to begin no more of them. When nobody listens any more, it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch

from flywheel.agents.policy import Policy
from flywheel.agents.student import FlatAgent, HierarchicalAgent
from flywheel.collect.playing_ray import play_on_ray, travels
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.splits import assign
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.errors import FlywheelError, InfrastructureError
from flywheel.rollouts.episode import Job, Origin, id_of
from flywheel.rollouts.play import RolloutHooks, play
from flywheel.runtime.subprocesses import child_environment, python_command
from flywheel.trajectory import Split, Task

ENOUGH = "enough"
WORTH = 48
"""Episodes below which a process more, or a cluster, is not worth its start."""


def play_apart(
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
    `environment.processes` processes, this one among them.

    Only where the student's models are on this machine, and where nobody looks on.
    """
    new = len(jobs) - len(lake.known_ids([id_of(job, policy, origin) for job in jobs]))
    watched = hooks.auditor is not None or hooks.callbacks
    if config.cluster.ray and new >= WORTH and travels(policy) and not watched:
        return play_on_ray(config, lake, policy, jobs, origin, progress, hooks)
    count = min(config.environment.processes, new // WORTH)
    if count < 2 or watched or not (isinstance(policy, FlatAgent | HierarchicalAgent) and policy.is_local):
        return play(config, lake, world, policy, jobs, origin, progress, hooks)
    assign(lake, [job.task for job in jobs])
    parts = [jobs[number::count] for number in range(count)]
    with _threads(count), _children(config, policy, parts[1:], origin, progress, hooks) as wait:
        ids = play(config, lake, world, policy, parts[0], origin, progress, hooks)
        wait()
    own = {id_of(job, policy, origin) for job in parts[0]}
    return [
        *(id_of(job, policy, origin) for job in jobs),
        *(trajectory_id for trajectory_id in ids if trajectory_id not in own),
    ]


@contextmanager
def _threads(processes: int) -> Iterator[None]:
    """A fair share of the cores for this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _children(
    config: Config,
    policy: Policy,
    parts: Sequence[Sequence[Job]],
    origin: Origin,
    progress: Callable[[int], None],
    hooks: RolloutHooks,
) -> Iterator[Callable[[], None]]:
    """Processes that play these parts, and what waits for them. Leaving ends those that still run."""
    threads = str(max(1, torch.get_num_threads()))
    with ExitStack() as files:
        # a pipe that nobody reads would fill and stop the child
        said = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in parts]
        children = [
            subprocess.Popen(
                python_command("-m", "flywheel.collect.playing_processes"),
                env=child_environment(OMP_NUM_THREADS=threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            for errors in said
        ]
        stopped: list[BaseException] = []
        listening = [
            threading.Thread(target=_listen, args=(child, progress, hooks, stopped), daemon=True) for child in children
        ]
        for child, part, thread in zip(children, parts, listening, strict=True):
            assert child.stdin is not None
            child.stdin.write(json.dumps(_order(config, policy, part, origin)) + "\n")
            child.stdin.flush()
            thread.start()

        def wait() -> None:
            for child, thread, errors in zip(children, listening, said, strict=True):
                thread.join()
                if stopped:
                    raise stopped[0]
                if child.wait():
                    errors.seek(0)
                    told = errors.read().strip().splitlines() or [f"exit code {child.returncode}"]
                    raise InfrastructureError(f"a process that played episodes ended: {told[-1]}")

        try:
            yield wait
        finally:
            for child, thread in zip(children, listening, strict=True):
                if child.poll() is None:
                    child.kill()
                child.wait()
                thread.join()
                for pipe in (child.stdin, child.stdout):
                    if pipe is not None:
                        pipe.close()


def _listen(
    child: subprocess.Popen[str], progress: Callable[[int], None], hooks: RolloutHooks, stopped: list[BaseException]
) -> None:
    """Pass on what a child says. Where `progress` wants no more, the child ends, and `stopped` says why."""
    assert child.stdout is not None
    assert child.stdin is not None
    told = False
    for line in child.stdout:
        try:
            progress(int(line))
            enough = hooks.enough is not None and hooks.enough()
        except BaseException as error:
            stopped.append(error)
            child.kill()
            return
        if enough and not told:
            told = True
            with suppress(BrokenPipeError):  # it has just ended
                child.stdin.write(f"{ENOUGH}\n")
                child.stdin.flush()


def _order(config: Config, policy: Policy, part: Sequence[Job], origin: Origin) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "policy": policy.policy_id,
        "version": policy.version,
        "jobs": [[asdict(job.task), job.attempt] for job in part],
        "origin": asdict(origin),
    }


def main() -> None:
    """The child's part."""
    from flywheel.policies.registry import policy_directory
    from flywheel.policies.students import load_policy
    from flywheel.runtime.devices import pick_device

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    enough = threading.Event()
    threading.Thread(target=_end_with_parent, args=(enough,), daemon=True).start()
    config = Config.model_validate(order["config"])
    lake = Lake.of(config)
    student = load_policy(policy_directory(lake, order["policy"]), pick_device(config.train.device))
    if student.version != order["version"]:
        raise FlywheelError(f"{order['policy']} decides otherwise here than where it was asked for")
    jobs = [Job(Task(**{**task, "split": Split(task["split"])}), attempt) for task, attempt in order["jobs"]]
    with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
        play(
            config,
            lake,
            world,
            student,
            jobs,
            Origin(**order["origin"]),
            lambda done: print(done, file=answers, flush=True),
            RolloutHooks(enough=enough.is_set),
        )


def _end_with_parent(enough: threading.Event) -> None:
    for _ in sys.stdin:
        enough.set()
    os._exit(1)


if __name__ == "__main__":
    try:
        main()
    except FlywheelError as problem:
        sys.exit(str(problem))
