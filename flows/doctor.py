"""Preflight checks: everything that would stop a run later, reported before it starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flywheel.config.root import Config
from flywheel.errors import ConfigError, ContaminationError, FlywheelError, PrerequisiteError
from flywheel.trajectory import Task

FREE_BYTES = 1 << 30
PRIVILEGED = "privileged"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check and what came of it."""

    check: str
    ok: bool
    detail: str


def diagnose(config: Config, without: Sequence[str] = ()) -> list[Finding]:
    """Run every check but those left out; none changes anything."""
    checks: dict[str, Callable[[Config], str]] = {
        "environment": _recorded if config.is_recorded else _environment,
        "teachers": (lambda _: "none: runs come from outside") if config.is_recorded else _teachers,
        "lake": _lake,
        "disk": _disk,
        "cluster": _cluster,
        "port of serve": _port,
        "torch": _torch,
        "prefect": _prefect,
    }
    findings = []
    for name, look in checks.items():
        if name in without:
            continue
        try:
            findings.append(Finding(name, True, look(config)))
        except (FlywheelError, ImportError, OSError) as error:
            findings.append(Finding(name, False, str(error)))
    return findings


def check(config: Config) -> None:
    """Everything that would stop a run, in one line before anything starts. Raises `PrerequisiteError`."""
    if config.is_recorded:
        raise PrerequisiteError(f"nothing was started: {_recorded(config)}")
    wrong = [finding for finding in diagnose(config, without=("port of serve",)) if not finding.ok]
    if wrong:
        problems = "; ".join(f"{finding.check}: {finding.detail}" for finding in wrong)
        raise PrerequisiteError(f"nothing was started: {problems}")


def _recorded(config: Config) -> str:
    from flywheel.filters.verifiers.catalog import Tools, make_verifiers

    make_verifiers(config.curate.verifiers, Tools(None, config.data_dir))
    return (
        f"{config.environment.name} is recorded, and not played; curate, distill, promote and evaluate --replay read it"
    )


def _environment(config: Config) -> str:
    """It starts, and offers what teachers and verifiers need."""
    from flywheel.environments.capabilities import KnowsSolutions, advises, describe_capabilities, solver
    from flywheel.environments.catalog import open_configured
    from flywheel.filters.verifiers.catalog import Tools, make_verifiers
    from flywheel.policies.factory import EXPERT, NOISY_EXPERT
    from flywheel.policies.registry import RANDOM
    from flywheel.rollouts.tasks import task_source
    from flywheel.trajectory import Split

    with open_configured(config) as world:
        tasks = task_source(config, world)
        (task,) = tasks.draw(Split.TRAIN, 0, 1)
        seen = world.environments(1)[0].reset(task)
        able = describe_capabilities(world, seen)
        for name in (*config.collect.teachers, config.gate.baseline):
            if name in (EXPERT, NOISY_EXPERT) and not advises(world):
                solver(world, f"the teacher {name}", "name another one in collect.teachers and gate.baseline, as chat")
            if name == RANDOM and name in config.collect.teachers and seen.valid_actions is None:
                raise ConfigError("the teacher random needs an environment that lists valid actions; name another one")
        make_verifiers(config.curate.verifiers, Tools(world, config.data_dir))
    if tasks.listed is not None:
        _agrees(config, [task for split in Split for task in tasks.listed[split]])
    lacks = ", ".join(name for name, has, _ in able if not has)
    unused = isinstance(world, KnowsSolutions) and PRIVILEGED not in [each.name for each in config.curate.verifiers]
    hint = f"; it knows solutions: {PRIVILEGED} in curate.verifiers would hold runs against them" if unused else ""
    return f"{config.environment.name} starts and resets{'; it lacks ' if lacks else ''}{lacks}{hint}"


def _agrees(config: Config, tasks: Sequence[Task]) -> None:
    """Raises `ContaminationError` for a list whose splits are not those that the lake knows of its tasks."""
    from flywheel.datasets.lake.lake import Lake
    from flywheel.datasets.lake.splits import conflicts

    if Lake.exists(config) and (wrong := conflicts(Lake.of(config), {task.name: task for task in tasks})):
        name, why = next(iter(wrong.items()))
        raise ContaminationError(f"task '{name}': {why}; {len(wrong)} of the list's tasks are in another split now")


def _teachers(config: Config) -> str:
    from flywheel.agents.inference.endpoint import models_of
    from flywheel.datasets.lake.lake import Lake
    from flywheel.policies.factory import CHAT, NAMES, SERVED
    from flywheel.policies.registry import registered

    for name in (*config.collect.teachers, config.gate.baseline):
        if name in (CHAT, SERVED):
            server = config.chat if name == CHAT else config.served
            if server.model not in (known := models_of(server)) and known:
                raise ConfigError(f"{server.base_url} has no model '{server.model}'; it has: {', '.join(known)}")
        elif name not in NAMES:
            if not Lake.exists(config):
                raise ConfigError(f"there is no teacher '{name}'; known: {', '.join(NAMES)}")
            registered(Lake.of(config), name)
    return ", ".join(config.collect.teachers)


def _lake(config: Config) -> str:
    from flywheel.datasets.lake.lake import Lake
    from flywheel.datasets.lake.url import parse_lake_url

    if not Lake.exists(config):
        return f"{parse_lake_url(config.lake.url or config.data_dir).name} will be created"
    lake = Lake.of(config)
    lake.connect().close()
    return f"{lake.name} at snapshot {lake.snapshot()}"


def _disk(config: Config) -> str:
    place = next(path for path in (config.data_dir.absolute(), *config.data_dir.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK):
        raise OSError(f"{place} cannot be written; set another data_dir")
    free = shutil.disk_usage(place).free
    if free < FREE_BYTES:
        raise OSError(f"only {free >> 20} MiB free at {place}; a run needs 1 GiB")
    return f"{free >> 30} GiB free"


def _cluster(config: Config) -> str:
    if not config.cluster.ray:
        return "this machine alone"
    from flywheel.runtime.ray_workers import cores

    cluster_cores = cores(config.cluster.ray)
    if cluster_cores < config.cluster.actors:
        raise ConfigError(
            f"the cluster has {cluster_cores} cores; lower cluster.actors ({config.cluster.actors}) or add machines"
        )
    return f"{cluster_cores} cores at {config.cluster.ray}"


def _port(config: Config) -> str:
    from flywheel.flows.server import free_port

    if existing := os.environ.get("PREFECT_API_URL"):
        return f"not needed, PREFECT_API_URL is {existing}"
    return f"{free_port(config.serve.port)} is free"


def _torch(config: Config) -> str:
    import torch

    from flywheel.runtime.devices import pick_device

    return f"{torch.__version__} on {pick_device(config.train.device)}, {torch.get_num_threads()} threads"


def _prefect(config: Config) -> str:
    from importlib.metadata import version

    return version("prefect")
