"""What a student learns from: trajectories of one snapshot with their segments, and where each may teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.arrow import segments_from_arrow
from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.datasets.leaks import refuse_leaks
from flywheel.datasets.reading import check_condition, quoted
from flywheel.distill.drawing import draw_weights
from flywheel.distill.policies import NOISY_EXPERT, TUTORED
from flywheel.errors import LeakError, TrainingError
from flywheel.trajectory import RouteTo, Segment, Trajectory, digest

VERIFIED = frozenset({RouteTo.SUPERVISED, RouteTo.DUPLICATE})
"""Routes of what every role may learn from; the others teach executors what they completed."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """`condition`: the SQL that chose it, or empty where it is an iteration's."""

    trajectories: tuple[Trajectory, ...]
    segments: dict[str, list[Segment]]
    routes: dict[str, RouteTo]
    weights: dict[str, float]
    snapshot: int
    condition: str

    @property
    def digest(self) -> str:
        weighed = [(one, route, round(self.weights[one], 6)) for one, route in sorted(self.routes.items())]
        return digest("corpus", weighed, size=8)


def load_corpus(config: Config, lake: Lake, iteration: int, condition: str = "") -> Corpus:
    """Training trajectories up to an iteration, or exactly those that a condition over `trajectories` selects.

    Of an iteration: verified ones, and teachers' that at least hold completed segments; a student's failed episode
    teaches nobody, its way to a milestone is mostly its own wandering. Raises `LeakError` where one of them is of a
    held-out task, or so like one (`curate.leak`) that it gives it away, and `TrainingError` where nothing is left.
    """
    snapshot = lake.snapshot()
    routes = _selected(lake, snapshot, condition) if condition else _collected(lake, snapshot, iteration)
    if not VERIFIED & set(routes.values()):
        said = (
            f"nothing verified satisfies: {condition}" if condition else "no verified training trajectory in the lake"
        )
        raise TrainingError(f"{said}; run `flywheel collect` and `flywheel curate`")
    segments: dict[str, list[Segment]] = {one: [] for one in routes}
    cut = f"select * from segmentations where source = {quoted(config.train.segments)} order by trajectory_id, index"
    for part in segments_from_arrow(lake.sql(cut, at=snapshot)):
        if part.trajectory_id in segments:
            segments[part.trajectory_id].append(part)
    if uncut := [one for one, own in segments.items() if not own]:
        raise TrainingError(
            f"{len(uncut)} of {len(routes)} trajectories have no segments of {config.train.segments}, as {uncut[0]}; "
            f"run: flywheel segment {config.train.segments.partition('/')[0]}"
        )
    refuse_leaks(lake, list(routes), config.curate.leak)
    weighed = draw_weights(lake, list(routes), config.balance, iteration)
    return Corpus(tuple(lake.trajectories(list(routes))), segments, routes, weighed, snapshot, condition)


def refuse_revoked(lake: Lake, ids: Sequence[str], snapshot: int) -> None:
    """Raise `TrainingError` if the lake took something back that was read at a snapshot."""
    gone = lake.sql("select trajectory_id from revocations order by trajectory_id")["trajectory_id"].to_pylist()
    if lost := sorted(set(gone) & set(ids)):
        raise TrainingError(
            f"{len(lost)} trajectories of snapshot {snapshot} were taken back meanwhile, as {lost[0]}; "
            "distill again: the student would hold what is gone"
        )


def _collected(lake: Lake, snapshot: int, iteration: int) -> dict[str, RouteTo]:
    rows = lake.sql(
        f"""select trajectory_id, route from trajectories
            where split = 'train' and purpose = 'collect' and iteration <= {iteration} and revoked is null
              and (route = '{RouteTo.SUPERVISED}'
                   or route = '{RouteTo.EXECUTOR}' and policy in ('{NOISY_EXPERT}', '{TUTORED}'))
            order by trajectory_id""",
        at=snapshot,
    ).to_pylist()
    return {row["trajectory_id"]: RouteTo(row["route"]) for row in rows}


def _selected(lake: Lake, snapshot: int, condition: str) -> dict[str, RouteTo]:
    check_condition(condition)
    rows = lake.sql(
        f"""select trajectory_id, split, route, revoked is not null as revoked from trajectories where ({condition}
) order by trajectory_id""",
        at=snapshot,
    ).to_pylist()
    if not rows:
        raise TrainingError(f"nothing in the lake satisfies: {condition}")
    if held := [row for row in rows if row["split"] != "train"]:
        raise LeakError(
            f"{len(held)} of {len(rows)} selected trajectories are of held-out tasks, as {held[0]['trajectory_id']} "
            f"({held[0]['split']}); add: and split = 'train'"
        )
    unfit = [row for row in rows if row["revoked"] or row["route"] in (None, str(RouteTo.QUARANTINE))]
    if unfit:
        raise TrainingError(
            f"{len(unfit)} of {len(rows)} selected trajectories are not curated, quarantined or revoked, as "
            f"{unfit[0]['trajectory_id']}; add: and route <> 'quarantine' and revoked is null"
        )
    return {row["trajectory_id"]: RouteTo(row["route"]) for row in rows}
