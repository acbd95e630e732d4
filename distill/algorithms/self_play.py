"""Self-play: a student plays training tasks; its episodes, solved or not, are what its next version learns from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pyarrow as pa

from flywheel.arrow import segments_to_arrow
from flywheel.config.algorithms import OnlineConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.datasets.versions.contamination import refuse_contamination
from flywheel.distill.algorithms.protocol import Finetuning
from flywheel.distill.data.corpus import Corpus
from flywheel.environments.catalog import open_configured
from flywheel.errors import TrainingError
from flywheel.filters.curate import curate
from flywheel.filters.segments import by_plan
from flywheel.policies.registry import policy_directory
from flywheel.policies.students import load_policy
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import RETRY_STRIDE, play
from flywheel.rollouts.tasks import task_source
from flywheel.runtime.devices import pick_device
from flywheel.runtime.distributed import barrier, broadcast, is_main
from flywheel.trajectory import RouteTo

PURPOSE, SEGMENTS = "self_play", "self_play/1"
"""The subgoals that the student ordered. All count as decided; whether they were reached, credit tells."""


def online_phase(start: Finetuning, settings: OnlineConfig) -> Config:
    """The config of a phase in which a student learns from its own play."""
    segments = {"segments": SEGMENTS} if start.kind == "hierarchical" else {}
    return start.phase(settings, renamed=0.0, validation_share=0.0, **segments)


def play_round(config: Config, lake: Lake, policy_id: str, tasks: range, attempts: int = 1) -> Corpus:
    """Play and curate training tasks with a student at temperature 1, as far as that is not done; its episodes, but
    for broken and distrusted ones."""
    if is_main():
        _play(config, lake, policy_id, tasks, attempts)
    barrier()
    snapshot = broadcast(lake.snapshot())
    condition = f"policy_id = {quoted(policy_id)} and purpose = '{PURPOSE}' and attempt % {RETRY_STRIDE} < {attempts}"
    rows = lake.sql(
        f"""select trajectory_id, task_id,
                   trajectory_id in (select trajectory_id from steps where valid_actions is null) as unlisted
            from trajectories where ours and {condition}
            and split = 'train' and route <> '{RouteTo.QUARANTINE}' and revoked is null
            and length > 0 order by trajectory_id""",
        at=snapshot,
    ).to_pylist()
    if not rows:
        raise TrainingError(f'no episode that {policy_id} played can be believed; see: flywheel sql "from verdicts"')
    if any(row["unlisted"] for row in rows):
        raise TrainingError("a student's own play teaches where actions are listed, and here some steps list none")
    task_of = {row["trajectory_id"]: row["task_id"] for row in rows}
    refuse_contamination(lake, list(task_of), config.curate.leak)
    routes = dict.fromkeys(task_of, RouteTo.SUPERVISED)
    weights = dict.fromkeys(task_of, 1.0)
    return Corpus(
        lake,
        routes,
        weights,
        task_of,
        spoken=[],
        exchangeable=[],
        constants=[],
        calls_tools=False,
        segments=SEGMENTS,
        snapshot=snapshot,
        condition=condition,
    )


def _play(config: Config, lake: Lake, policy_id: str, tasks: range, attempts: int) -> None:
    with open_configured(config) as world:
        student = load_policy(policy_directory(lake, policy_id), pick_device(config.train.device), temperature=1.0)
        jobs = [
            Job(task, attempt)
            for task in task_source(config, world).practice(tasks.start, len(tasks))
            for attempt in range(attempts)
        ]
        ids = play(config, lake, world, student, jobs, Origin(0, PURPOSE, config.identity()))
    curate(config, lake)
    for start in range(0, len(ids), 256):
        known = sorted(lake.known_ids(ids[start : start + 256]))
        segments = [
            replace(segment, completed=True, source=SEGMENTS)
            for trajectory in lake.trajectories(known)
            if trajectory.length
            for segment in by_plan(trajectory)
        ]
        lake.append_facts("segments", segments_to_arrow(segments), f"self-play of {policy_id}", key=("source",))


def only(corpus: Corpus, trajectory_ids: Collection[str]) -> Corpus:
    """The corpus of some of its trajectories."""
    keep = set(trajectory_ids)
    return replace(
        corpus,
        routes={trajectory: route for trajectory, route in corpus.routes.items() if trajectory in keep},
        weights={trajectory: weight for trajectory, weight in corpus.weights.items() if trajectory in keep},
        tasks={trajectory: task for trajectory, task in corpus.tasks.items() if trajectory in keep},
    )


def verified_in(lake: Lake, corpus: Corpus) -> dict[str, float]:
    """Trajectory → 1 if it was verified, else 0."""
    return _column(lake, corpus, "verified::int")


def scores_in(lake: Lake, corpus: Corpus) -> dict[str, float]:
    """Trajectory → the share of the task that it solved, as the environment says."""
    return _column(lake, corpus, "score")


def widest_offer(lake: Lake, corpus: Corpus) -> int:
    """The most options of a step, "done" included."""
    most = "(select max(len(valid_actions)) from steps s where s.trajectory_id = t.trajectory_id)"
    return 1 + int(max(_column(lake, corpus, most).values()))


def _column(lake: Lake, corpus: Corpus, expression: str) -> dict[str, float]:
    connection = lake.connect(corpus.snapshot)
    try:
        connection.register("chosen", pa.table({"trajectory_id": pa.array(list(corpus.tasks), pa.string())}))
        rows = connection.sql(
            f"""select t.trajectory_id, coalesce({expression}, 0)
                from trajectories t semi join chosen using (trajectory_id)"""
        ).fetchall()
    finally:
        connection.close()
    return {trajectory: float(value) for trajectory, value in rows}
