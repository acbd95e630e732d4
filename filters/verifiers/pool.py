"""Verification of batches (segments, verdicts, fingerprints) in this process, in several, or on a Ray cluster.

A record whose verification raises is found by bisection, tried again with a fresh simulator, and reported with its
reason; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from flywheel.config.root import Config
from flywheel.environments.catalog import open_configured
from flywheel.environments.protocol import World
from flywheel.errors import (
    ConfigError,
    InfrastructureError,
    PrerequisiteError,
    RefusedError,
    TaskError,
    UnreachableError,
    named_reason,
)
from flywheel.filters.batch import TrajectoryBatch
from flywheel.filters.fingerprints import empty_fingerprints, fingerprints
from flywheel.filters.segments import segments_of
from flywheel.filters.verifiers.catalog import Tools, make_verifiers, needs_world
from flywheel.filters.verifiers.protocol import Verifier
from flywheel.rollouts.tasks import task_source
from flywheel.runtime.workers import in_order, open_workers
from flywheel.trajectory import Segment, Split, Verdict

MIN_BATCHES_PER_PROCESS = 2
"""With fewer, a process is not worth its start."""
TRIES = 3
"""How often a trajectory may make its verification raise, each time with a fresh simulator."""
ENVIRONMENT_FAULTS = (ConfigError, PrerequisiteError, UnreachableError, MemoryError)
"""What no record is to blame for."""


@dataclass(frozen=True)
class Findings:
    """What is known of a batch: for each trajectory its segments and its verdicts in the order of the pipeline.

    `unverifiable`: id → why its verification raises; such a trajectory has neither.
    """

    batch: TrajectoryBatch
    segments: list[list[Segment]]
    verdicts: list[tuple[Verdict, ...]]
    fingerprints: pa.Table
    unverifiable: dict[str, str] = field(default_factory=dict)


def examine(batch: TrajectoryBatch, verifiers: Sequence[Verifier]) -> Findings:
    """All findings about a batch that need nothing else of the lake."""
    verdicts = [verifier.verify(batch) for verifier in verifiers]
    return Findings(batch, segments_of(batch), list(zip(*verdicts, strict=True)), fingerprints(batch))


def verify(batch: TrajectoryBatch, verifiers: Sequence[Verifier]) -> Findings:
    """The verdicts alone."""
    verdicts = [verifier.verify(batch) for verifier in verifiers]
    return Findings(batch, [[] for _ in batch.ids], list(zip(*verdicts, strict=True)), empty_fingerprints(batch))


class BatchVerifier:
    """The pipeline's verifiers, with a simulator if they need one, for batches in which a bad record fails alone.

    `analyse`: what is done with a batch, `examine` or `verify`.
    """

    def __init__(
        self, config: Config, analyse: Callable[[TrajectoryBatch, Sequence[Verifier]], Findings] = examine
    ) -> None:
        self._config, self._analyse = config, analyse
        self._stack = ExitStack()
        self._world: World | None = None
        self._verifiers: list[Verifier] = []
        self._open()

    def close(self) -> None:
        self._stack.close()

    def examine(self, batch: TrajectoryBatch) -> Findings:
        """Findings of every trajectory; bisects a batch that raises. Raises what no record is to blame for."""
        try:
            return self._analyse(batch, self._verifiers)
        except ENVIRONMENT_FAULTS:
            raise
        except Exception as error:
            if len(batch) == 1:
                return self._retry_single(batch, error)
            if isinstance(error, InfrastructureError):
                self._open()
        half = len(batch) // 2
        parts = [self.examine(batch.rows(0, half)), self.examine(batch.rows(half, len(batch)))]
        return Findings(
            batch,
            [row for part in parts for row in part.segments],
            [row for part in parts for row in part.verdicts],
            pa.concat_tables([part.fingerprints for part in parts]),
            {trajectory_id: why for part in parts for trajectory_id, why in part.unverifiable.items()},
        )

    def _retry_single(self, batch: TrajectoryBatch, error: Exception) -> Findings:
        """Findings of a trajectory whose verification raised, if a fresh simulator helps; else why it raises."""
        for _ in range(1, TRIES if not isinstance(error, TaskError | RefusedError) else 1):
            self._open()
            try:
                return self._analyse(batch, self._verifiers)
            except ENVIRONMENT_FAULTS:
                raise
            except Exception as again:
                error = again
        if isinstance(error, InfrastructureError) and not isinstance(error, RefusedError):
            self._open()
            self._probe_world()
        why = named_reason(error)
        return Findings(batch, [[]], [()], empty_fingerprints(batch), {batch.ids[0]: why})

    def _open(self) -> None:
        """Start anew, with a fresh simulator."""
        self._stack.close()
        self._stack, self._world = ExitStack(), None
        if needs_world(self._config.curate.verifiers):
            self._world = self._stack.enter_context(open_configured(self._config))
        self._verifiers = make_verifiers(self._config.curate.verifiers, Tools(self._world, judge_cache(self._config)))

    def _probe_world(self) -> None:
        """Raises `InfrastructureError` if the world cannot begin a task of its own either: no record is to blame."""
        if self._world is not None:
            (task,) = task_source(self._config, self._world).draw(Split.TRAIN, 0, 1)
            self._world.environments(1)[0].reset(task)


def judge_cache(config: Config) -> Path:
    """Where answers of a judge are kept."""
    return config.data_dir / "judge"


def verify_batches(config: Config, batches: Iterator[TrajectoryBatch], batches_count: int) -> Iterator[Findings]:
    """Findings in the order of the batches. Several processes where there are several batches, and simulators to run.

    Without simulators one process is faster: columnar verifiers take less time than handing batches over does.
    """
    ray, count = config.cluster.ray, min(config.curate.workers, batches_count // MIN_BATCHES_PER_PROCESS)
    if ray:
        count = min(config.cluster.actors, batches_count)
    if not needs_world(config.curate.verifiers) or (count < 2 and not ray):
        with closing(BatchVerifier(config)) as batch_verifier:
            yield from map(batch_verifier.examine, batches)
        return
    absolute = config.model_copy(update={"data_dir": config.data_dir.absolute()})
    with open_workers(count, BatchVerifier, absolute, ray=ray) as workers:
        yield from in_order(workers, "examine", batches)
