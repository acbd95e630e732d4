"""The views over the catalog's tables: policies, decisions, datasets, and what was taken back or kept out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """`row` says what a row is; `columns` what each column holds, in order."""

    row: str
    statement: str
    columns: dict[str, str]


CATALOG_VIEWS: dict[str, View] = {
    "evaluations": View(
        "a policy's verified successes on held-out tasks",
        "select * from raw_evaluations",
        {
            "evaluation_id": "digest of policy, tasks and settings",
            "policy_id": "who played",
            "policy": "role of the policy",
            "iteration": "turn of the wheel",
            "split": "dev or test",
            "snapshot": "state of the lake that it was counted in",
            "tasks": "how many count",
            "verified": "how many every verifier passed",
            "broken": "tasks left out: broken infrastructure",
            "rate": "verified / tasks",
            "low": "of the 95 % Wilson interval",
            "high": "of the 95 % Wilson interval",
            "mean_score": "mean of the last progress",
            "created_at": "when",
        },
    ),
    "quarantined": View(
        "a record that an import could not take",
        "select * from raw_quarantined",
        {
            "record_id": "digest",
            "source": "file",
            "line": "line of the file, from 1",
            "format": "as which it was read",
            "reason": "why it was not taken",
            "record": "how it begins",
            "created_at": "when",
        },
    ),
    "policies": View(
        "a distilled policy",
        """select p.*, (select count(*) from raw_lineage l join raw_revocations v using (trajectory_id)
                        where l.policy_id = p.policy_id) as revoked
           from raw_policies p""",
        {
            "policy_id": "digest of corpus, settings and parent",
            "name": "flat or hierarchical",
            "version": "limits and decoding",
            "path": "folder inside the lake",
            "iteration": "turn that distilled it",
            "snapshot": "state of the lake that it was trained on",
            "parent_policy_id": "the student that training started from, or empty",
            "parameters": "number of weights",
            "card": "JSON",
            "created_at": "when",
            "revoked": "how many of its trajectories have been revoked since",
        },
    ),
    "champions": View(
        "a change of champion; the newest is in force",
        "select * from raw_champions",
        {
            "id": "1, 2, …",
            "policy_id": "who",
            "reason": "the gate's sentence, or rollback",
            "gate_id": "the decision",
            "created_at": "when",
        },
    ),
    "gates": View(
        "a decision: challenger against champion",
        "select * from raw_gates",
        {
            "gate_id": "digest",
            "iteration": "turn",
            "challenger_id": "the new policy",
            "champion_id": "its opponent",
            "promoted": "1 or 0",
            "result": "the paired test, JSON",
            "created_at": "when",
        },
    ),
    "lineage": View(
        "a policy and a trajectory that it was trained on: read it in either direction",
        "select * from raw_lineage",
        {"policy_id": "the student", "trajectory_id": "the episode"},
    ),
    "iterations": View(
        "a turn of the wheel",
        "select * from raw_iterations",
        {
            "iteration": "1, 2, …",
            "config_digest": "digest of the settings",
            "champion_id": "in force when it began",
            "report": "JSON",
            "started_at": "when it began",
            "finished_at": "when it ended; NULL while it runs",
        },
    ),
    "dataset_versions": View(
        "a version of a dataset",
        "select * from raw_dataset_versions",
        {
            "name": "of the dataset",
            "version": "1, 2, …",
            "snapshot": "state of the lake that it reads",
            "condition": "SQL over trajectories",
            "sample": "how many were drawn, or NULL for all",
            "seed": "of the draw and of the order",
            "trajectories": "how many",
            "steps": "how many",
            "digest": "of the ids",
            "card": "Markdown",
            "flag": "what happened since to what it holds, or empty",
            "created_at": "when",
        },
    ),
    "revocations": View(
        "a trajectory that was taken back",
        "select * from raw_revocations",
        {"trajectory_id": "the episode", "reason": "why", "created_at": "when"},
    ),
    "assignments": View(
        "the split of a task, template or environment, decided before it was first played",
        "select * from raw_assignments",
        {"unit": "what belongs to one split as a whole", "split": "train, dev or test", "created_at": "when"},
    ),
    "calibrations": View(
        "how far a verifier agrees with ground truth on labelled episodes",
        "select * from raw_calibrations",
        {
            "calibration_id": "digest of verifier and labelled set",
            "verifier": "name",
            "version": "of the verifier",
            "arguments": "JSON",
            "environment": "of the labelled episodes",
            "parameters": "its settings, JSON",
            "labelled": "how many episodes",
            "accepted": "1 if it passed the acceptance test",
            "precision": "share of what it passed that was a true success",
            "recall": "share of the true successes that it passed",
            "kappa": "Cohen's kappa with ground truth",
            "cheats_caught": "share of planted cheats that it did not pass",
            "honest_flagged": "share of honest episodes whose integrity it denied",
            "result": "counts and reliability bins, JSON",
            "created_at": "when",
        },
    ),
    "redactions": View(
        "secrets that were replaced before a file was written",
        "select * from raw_redactions",
        {
            "part": "the file",
            "kind": "of the file",
            "secret": "what kind of secret",
            "occurrences": "how many",
            "created_at": "when",
        },
    ),
}
CATALOG_KINDS = {
    "policies": "policy",
    "champions": "champion",
    "gates": "gate",
    "lineage": "lineage",
    "iterations": "iteration",
    "dataset_versions": "dataset_version",
    "revocations": "revocation",
    "evaluations": "evaluation",
    "quarantined": "quarantined",
    "assignments": "assignment",
    "calibrations": "calibration",
    "redactions": "redaction",
}
"""View → catalog table."""
