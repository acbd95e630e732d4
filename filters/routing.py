"""Routing: where each trajectory goes next, and why (UI-TARS-2, arXiv 2509.02544: nothing is thrown away)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.filters.verifiers.replay import Replay
from flywheel.trajectory import OURS, Route, RouteTo, Segment, Split, StopReason, TrajectoryOrigin, Verdict

SOURCE = "routing/3"
COPIED = "copy of another episode under a new id"


@dataclass(frozen=True, slots=True)
class Case:
    """What routing knows of a trajectory. `verdicts` are those of the verifiers that gate."""

    trajectory_id: str
    split: Split
    stop_reason: StopReason
    verdicts: Sequence[Verdict]
    segments: Sequence[Segment]
    copied: bool = False
    """Another trajectory holds the very same playing."""
    repeats: bool = False
    """An earlier training episode says the same."""
    origin: TrajectoryOrigin = TrajectoryOrigin.COLLECTED
    vouchers: tuple[str, ...] = ()
    """Verifiers, besides replay, whose word is enough for an import."""
    problem: str = ""
    """Why it cannot be verified at all, or is of no task that may teach; empty where nothing is wrong."""

    @property
    def failed(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.passed]

    @property
    def voucher(self) -> str:
        """Who reproduced, or vouches for, an import; empty if nobody does."""
        return next(
            (verdict.verifier for verdict in self.verdicts if verdict.passed and verdict.verifier in self._able), ""
        )

    @property
    def reproduced(self) -> bool:
        """Did we play it, or has a replay gone through the very same states?"""
        replays = [verdict for verdict in self.verdicts if verdict.verifier == Replay.name and verdict.confidence > 0]
        return self.origin in OURS or any(replay.integrity >= replay.integrity_threshold for replay in replays)

    @property
    def _able(self) -> frozenset[str]:
        return frozenset((Replay.name, *self.vouchers))

    @property
    def verified(self) -> bool:
        """Did every gating verifier pass, and, of an import, one that is worth something there?"""
        trusted = self.origin in OURS or self.voucher != ""
        return bool(self.verdicts) and not self.failed and not self.problem and trusted


def route(case: Case, *, source: str = SOURCE, at: float = 0.0) -> Route:
    """Verified means that every gating verifier passed. Held-out episodes never teach, however good they are."""
    to, reason = _decide(case)
    return Route(case.trajectory_id, to, case.verified and not case.copied, reason, source, at)


def _decide(case: Case) -> tuple[RouteTo, str]:
    if case.stop_reason is StopReason.INFRASTRUCTURE:
        return RouteTo.QUARANTINE, "infrastructure failure"
    if case.problem:
        return RouteTo.QUARANTINE, f"cannot be verified: {case.problem}"
    if case.copied:
        return RouteTo.QUARANTINE, COPIED
    failed = case.failed
    forged = next((verdict for verdict in failed if verdict.integrity < verdict.integrity_threshold), None)
    if forged:
        return RouteTo.QUARANTINE, f"{forged.verifier}: {_first_flaw(forged)}"
    if case.split is not Split.TRAIN:
        return RouteTo.HELD_OUT, f"{case.split} episode"
    if case.verified and case.repeats:
        return RouteTo.DUPLICATE, "an earlier training episode says the same"
    if case.verified:
        vouched = "" if case.origin in OURS else f"; vouched for by {case.voucher}"
        return RouteTo.SUPERVISED, f"every verifier passed{vouched}"
    if not failed:
        return RouteTo.CONTINUAL, "imported, and nobody vouches for it: see curate.vouch"
    if case.reproduced and any(segment.completed for segment in case.segments):
        return RouteTo.EXECUTOR, f"{failed[0].verifier} failed, but holds completed segments"
    return RouteTo.CONTINUAL, f"{failed[0].verifier} failed, nothing completed"


def _first_flaw(verdict: Verdict) -> str:
    return next((f"not so: {item.name}" for item in verdict.items if item.points == 0 and item.fraction < 1), "denied")
