"""The SQL face of the lake: one documented view a subject, over Parquet and the catalog.

`VIEWS` is the reference: name → (what a row is, select statement). Statements read the raw tables that
`lake.Lake.connect` puts under `raw_*`.
"""

from __future__ import annotations

VIEWS: dict[str, tuple[str, str]] = {
    "trajectories": (
        "One row an episode, with its route. `verified` is NULL until the episode has been curated.",
        """select t.*, r.verified::int as verified, r.route, r.reason as route_reason
           from raw_trajectories t left join raw_routes r using (trajectory_id)""",
    ),
    "steps": (
        "One row a turn: what the agent saw, did and got. Join on trajectory_id, order by index.",
        "select * from raw_steps",
    ),
    "segments": (
        "One row a subgoal of a segmented episode: steps [start, end).",
        "select * from raw_segments",
    ),
    "verdicts": (
        "One row a verifier and episode: completion A, integrity B, thresholds, checklist items with evidence.",
        "select * from raw_verdicts",
    ),
    "routes": ("Where each curated episode went, and why.", "select * from raw_routes"),
    "policies": (
        "One row a distilled policy. `snapshot` is the state of the lake that it was trained on.",
        "select * from raw_policies",
    ),
    "champions": (
        "The history of the champion pointer; the newest row is in force.",
        "select * from raw_champions",
    ),
    "gates": (
        "One row a gate: challenger against champion, the decision, and the paired test as JSON.",
        "select * from raw_gates",
    ),
    "lineage": (
        "One row a policy and trajectory that it was trained on: read it in either direction.",
        "select * from raw_lineage",
    ),
    "iterations": (
        "One row a turn of the wheel; finished_at is NULL while it runs. The report is JSON.",
        "select * from raw_iterations",
    ),
}
"""Every view of `flywheel sql`; docs/sql.md is checked against it."""

PARQUET_KINDS = ("trajectories", "steps", "verdicts", "routes", "segments")
CATALOG_KINDS = {
    "policies": "policy",
    "champions": "champion",
    "gates": "gate",
    "lineage": "lineage",
    "iterations": "iteration",
}
