"""Playing a student's episodes in several processes, each with its own model, simulator and connection to the lake.

One process decides on one core at a time, so more of them play faster. Ids are deterministic and commits exactly-once,
so a process that is killed costs nothing but its unfinished episodes.

    python -m flywheel.distill.shards < ORDER

A child reads one line of JSON, its order, plays it, and says how many more episodes are done, a line each time. When
nobody listens any more, it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import torch

from flywheel.agents.collect import ALONE, Company, play
from flywheel.agents.episode import Job, Origin, id_of
from flywheel.agents.policy import Policy
from flywheel.agents.student import FlatAgent, HierarchicalAgent
from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.datasets.splits import assign
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.errors import FlywheelError, InfrastructureError
from flywheel.trajectory import Split, Task

WORTH = 48
"""Episodes below which a process more is not worth its start."""


def play_apart(
    config: Config,
    lake: Lake,
    world: World,
    policy: Policy,
    jobs: Sequence[Job],
    origin: Origin,
    progress: Callable[[int], None],
    company: Company,
) -> list[str]:
    """`play`, with a student's episodes dealt out to `environment.processes` processes, this one among them.

    Only where the student's models are on this machine, and where nobody looks on.
    """
    new = len(jobs) - len(lake.known_ids([id_of(job, policy, origin) for job in jobs]))
    count = min(config.environment.processes, new // WORTH)
    if count < 2 or company != ALONE or not (isinstance(policy, FlatAgent | HierarchicalAgent) and policy.is_local):
        return play(config, lake, world, policy, jobs, origin, progress, company)
    assign(lake, [job.task for job in jobs])
    parts = [jobs[number::count] for number in range(count)]
    with _threads(count), _children(config, policy, parts[1:], origin, progress) as wait:
        ids = play(config, lake, world, policy, parts[0], origin, progress, company)
        wait()
    own = {id_of(job, policy, origin) for job in parts[0]}
    return [*(id_of(job, policy, origin) for job in jobs), *(one for one in ids if one not in own)]


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
    config: Config, policy: Policy, parts: Sequence[Sequence[Job]], origin: Origin, progress: Callable[[int], None]
) -> Iterator[Callable[[], None]]:
    """Processes that play these parts, and what waits for them. Leaving ends those that still run."""
    threads = str(max(1, torch.get_num_threads()))
    with ExitStack() as files:
        # a pipe that nobody reads would fill and stop the child
        said = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in parts]
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "flywheel.distill.shards"],
                env=os.environ | {"OMP_NUM_THREADS": threads},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            for errors in said
        ]
        listening = [threading.Thread(target=_listen, args=(child, progress), daemon=True) for child in children]
        for child, part, thread in zip(children, parts, listening, strict=True):
            assert child.stdin is not None
            child.stdin.write(json.dumps(_order(config, policy, part, origin)) + "\n")
            child.stdin.flush()
            thread.start()

        def wait() -> None:
            for child, thread, errors in zip(children, listening, said, strict=True):
                thread.join()
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


def _listen(child: subprocess.Popen[str], progress: Callable[[int], None]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        progress(int(line))


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
    from flywheel.distill.registry import policy_directory
    from flywheel.distill.students import load_policy
    from flywheel.distill.train import pick_device

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
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
        )


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    try:
        main()
    except FlywheelError as problem:
        sys.exit(str(problem))
