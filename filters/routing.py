"""Routing: where each trajectory goes next, and why (UI-TARS-2, arXiv 2509.02544: nothing is thrown away)."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.trajectory import Route, RouteTo, Segment, Split, StopReason, Trajectory, Verdict

SOURCE = "routing/1"


def route(trajectory: Trajectory, verdicts: Sequence[Verdict], segments: Sequence[Segment]) -> Route:
    """Verified means that every verifier passed. Held-out episodes never go to training, however good they are."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    verified = bool(verdicts) and not failed
    to, reason = _decide(trajectory, failed, verified, segments)
    return Route(trajectory.trajectory_id, to, verified, reason, SOURCE)


def _decide(
    trajectory: Trajectory, failed: Sequence[Verdict], verified: bool, segments: Sequence[Segment]
) -> tuple[RouteTo, str]:
    if trajectory.stop_reason is StopReason.INFRASTRUCTURE:
        return RouteTo.QUARANTINE, f"infrastructure: {trajectory.error}"
    forged = [verdict for verdict in failed if verdict.integrity < verdict.integrity_threshold]
    if forged:
        evidence = next((item.evidence for item in forged[0].items if item.fraction < 1), "")
        return RouteTo.QUARANTINE, f"{forged[0].verifier}: {evidence}"
    if trajectory.split is not Split.TRAIN:
        return RouteTo.HELD_OUT, f"{trajectory.split} episode"
    if verified:
        return RouteTo.SUPERVISED, "every verifier passed"
    if any(segment.completed for segment in segments):
        return RouteTo.EXECUTOR, f"{failed[0].verifier} failed, but holds completed segments"
    return RouteTo.CONTINUAL, f"{failed[0].verifier} failed, nothing completed"
