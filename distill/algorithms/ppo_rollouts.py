"""Practice: a student plays training tasks; its episodes, solved or not, are what its next version learns from."""

from __future__ import annotations

from dataclasses import replace

from flywheel.arrow import segments_to_arrow
from flywheel.config.distill import PracticeConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.datasets.versions.contamination import refuse_contamination
from flywheel.distill.data.corpus import Corpus
from flywheel.distill.subgoals.segmentation import by_plan
from flywheel.environments.catalog import canonical, open_world
from flywheel.errors import TrainingError
from flywheel.filters.curate import curate
from flywheel.policies.registry import policy_directory
from flywheel.policies.students import load_policy
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import play
from flywheel.runtime.devices import pick_device
from flywheel.runtime.distributed import barrier, broadcast, is_main
from flywheel.trajectory import RouteTo, Split

PURPOSE, SEGMENTS = "practice", "practice/1"
"""The subgoals that a practising student ordered. All count as decided; whether they were reached, credit tells."""


def practise(config: Config, settings: PracticeConfig, lake: Lake, policy_id: str, number: int) -> Corpus:
    """Play and curate a round's tasks with a student at temperature 1, as far as that is not done; its episodes, but
    for broken and distrusted ones."""
    if is_main():
        _play(config, settings, lake, policy_id, number)
    barrier()
    snapshot = broadcast(lake.snapshot())
    rows = lake.sql(
        f"""select trajectory_id, task_id from trajectories where ours and policy_id = {quoted(policy_id)}
            and purpose = '{PURPOSE}' and split = 'train' and route <> '{RouteTo.QUARANTINE}' and revoked is null
            and length > 0 order by trajectory_id""",
        at=snapshot,
    ).to_pylist()
    if not rows:
        raise TrainingError(f'no episode of {policy_id}\'s practice can be believed; see: flywheel sql "from verdicts"')
    tasks = {row["trajectory_id"]: row["task_id"] for row in rows}
    refuse_contamination(lake, list(tasks), config.curate.leak)
    condition = f"policy_id = {quoted(policy_id)} and purpose = '{PURPOSE}'"
    every = dict.fromkeys(tasks, RouteTo.SUPERVISED)
    return Corpus(lake, every, dict.fromkeys(tasks, 1.0), tasks, SEGMENTS, [], [], snapshot, condition)


def _play(config: Config, settings: PracticeConfig, lake: Lake, policy_id: str, number: int) -> None:
    with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
        folder = policy_directory(lake, policy_id)
        student = load_policy(folder, pick_device(config.train.device), temperature=1.0)
        tasks = world.tasks(Split.TRAIN, settings.start + number * settings.episodes, settings.episodes)
        ids = play(config, lake, world, student, [Job(task) for task in tasks], Origin(0, PURPOSE, config.identity()))
    curate(config, lake)
    for start in range(0, len(ids), 256):
        known = sorted(lake.known_ids(ids[start : start + 256]))
        cut = [
            replace(part, completed=True, source=SEGMENTS)
            for one in lake.trajectories(known)
            if one.length
            for part in by_plan(one)
        ]
        lake.append_facts("segments", segments_to_arrow(cut), f"practice of {policy_id}", key=("source",))
