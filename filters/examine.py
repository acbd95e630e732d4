"""Examining batches: segments, verdicts and fingerprints of each, in this process, in several, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.util import Finalize
from pathlib import Path

import pyarrow as pa

from flywheel.clusters import actors, in_order
from flywheel.config import Config
from flywheel.environments.catalog import canonical, open_world
from flywheel.errors import InfrastructureError
from flywheel.filters.batch import Batch
from flywheel.filters.catalog import Tools, make_verifiers, needs_world
from flywheel.filters.fingerprints import fingerprints
from flywheel.filters.segments import segments_of
from flywheel.filters.verifier import Verifier
from flywheel.trajectory import Segment, Verdict

WORTH = 2
"""Batches that a process more must get to be worth its start."""


@dataclass(frozen=True)
class Findings:
    """What is known of a batch: for each trajectory its segments and its verdicts in the order of the pipeline."""

    batch: Batch
    segments: list[list[Segment]]
    verdicts: list[tuple[Verdict, ...]]
    fingerprints: pa.Table


def examine(batch: Batch, verifiers: Sequence[Verifier]) -> Findings:
    """Everything that can be said of a batch without looking at the rest of the lake."""
    said = [verifier.verify(batch) for verifier in verifiers]
    return Findings(batch, segments_of(batch), list(zip(*said, strict=True)), fingerprints(batch))


@contextmanager
def running_verifiers(config: Config) -> Iterator[list[Verifier]]:
    """The pipeline's verifiers, with a simulator if they need one."""
    pipeline = config.curate.verifiers
    with ExitStack() as stack:
        world = None
        if needs_world(pipeline):
            settings = canonical(config.environment.parameters)
            world = stack.enter_context(open_world(config.environment.name, settings))
        yield make_verifiers(pipeline, Tools(world, judge_cache(config)))


def judge_cache(config: Config) -> Path:
    """Where answers of a judge are kept."""
    return config.data_dir / "judge"


def examine_all(config: Config, batches: Iterator[Batch], count: int) -> Iterator[Findings]:
    """Findings in the order of the batches. Several processes where there are several batches, and simulators to run.

    Without simulators one process is faster: columnar verifiers take less time than handing batches over does.
    """
    if config.cluster.ray and needs_world(config.curate.verifiers):
        absolute = config.model_copy(update={"data_dir": config.data_dir.absolute()})
        with actors(config.cluster.ray, min(config.cluster.actors, count), Examiner, absolute) as made:
            yield from in_order(made, "examine", batches)
        return
    workers = min(config.curate.workers, count // WORTH)
    if workers < 2 or not needs_world(config.curate.verifiers):
        with running_verifiers(config) as verifiers:
            yield from (examine(batch, verifiers) for batch in batches)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (config,)) as pool:
        try:
            yield from _in_order(batches, lambda batch: pool.submit(_examine, batch), ahead=workers + 1)
        except BrokenProcessPool as error:
            raise InfrastructureError("a process of verifiers died; see: flywheel doctor") from error


class Examiner:
    """An actor of a Ray cluster that has verifiers and their simulator."""

    def __init__(self, config: Config) -> None:
        self._stack = ExitStack()
        self._verifiers = self._stack.enter_context(running_verifiers(config))

    def close(self) -> None:
        self._stack.close()

    def examine(self, batch: Batch) -> Findings:
        return examine(batch, self._verifiers)


def _in_order(batches: Iterator[Batch], submit: Callable[[Batch], Future[Findings]], ahead: int) -> Iterator[Findings]:
    """Results in order, with a bounded number of batches under way."""
    waiting = [submit(batch) for batch in islice(batches, ahead)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [submit(batch) for batch in islice(batches, 1)]


_VERIFIERS: list[Verifier] = []
"""Of a worker process, which does nothing else."""


def _begin(config: Config) -> None:
    stack = ExitStack()
    _VERIFIERS.extend(stack.enter_context(running_verifiers(config)))
    Finalize(None, stack.close, exitpriority=10)


def _examine(batch: Batch) -> Findings:
    return examine(batch, _VERIFIERS)
