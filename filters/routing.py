"""Routing: where each trajectory goes next, and why (UI-TARS-2, arXiv 2509.02544: nothing is thrown away)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.trajectory import Route, RouteTo, Segment, Split, StopReason, Verdict

SOURCE = "routing/2"
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


def route(case: Case, *, source: str = SOURCE, at: float = 0.0) -> Route:
    """Verified means that every gating verifier passed. Held-out episodes never teach, however good they are."""
    failed = [verdict for verdict in case.verdicts if not verdict.passed]
    verified = bool(case.verdicts) and not failed and not case.copied
    to, reason = _decide(case, failed, verified)
    return Route(case.trajectory_id, to, verified, reason, source, at)


def _decide(case: Case, failed: Sequence[Verdict], verified: bool) -> tuple[RouteTo, str]:
    if case.stop_reason is StopReason.INFRASTRUCTURE:
        return RouteTo.QUARANTINE, "infrastructure failure"
    if case.copied:
        return RouteTo.QUARANTINE, COPIED
    forged = next((verdict for verdict in failed if verdict.integrity < verdict.integrity_threshold), None)
    if forged:
        return RouteTo.QUARANTINE, f"{forged.verifier}: {_first_flaw(forged)}"
    if case.split is not Split.TRAIN:
        return RouteTo.HELD_OUT, f"{case.split} episode"
    if verified and case.repeats:
        return RouteTo.DUPLICATE, "an earlier training episode says the same"
    if verified:
        return RouteTo.SUPERVISED, "every verifier passed"
    if any(segment.completed for segment in case.segments):
        return RouteTo.EXECUTOR, f"{failed[0].verifier} failed, but holds completed segments"
    return RouteTo.CONTINUAL, f"{failed[0].verifier} failed, nothing completed"


def _first_flaw(verdict: Verdict) -> str:
    return next((f"not so: {item.name}" for item in verdict.items if item.points == 0 and item.fraction < 1), "denied")
