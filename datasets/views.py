"""The SQL face of the lake: one documented view a subject, over Parquet and the catalog.

`VIEWS` is the reference: what a row is, what each column holds, and the statement, which reads the raw tables that
`reading.open_views` puts under `raw_*`. Times are seconds since 1970 in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel.arrow import ARROW_SCHEMAS


@dataclass(frozen=True, slots=True)
class View:
    """`row` says what a row is; `columns` what each column holds, in order."""

    row: str
    statement: str
    columns: dict[str, str]


_TRAJECTORY_COLUMNS = {
    "trajectory_id": "digest of task, policy, version, purpose and attempt",
    "environment": "name of the environment",
    "parameters": "the environment's settings, canonical JSON",
    "split": "train, dev or test",
    "seed": "what the environment was reset with",
    "task_id": "digest of environment, parameters, split and seed",
    "task_group": "tasks of one group never lie in two splits",
    "instruction": "what the agent was told",
    "policy": "role of the policy: expert, noisy_expert, random, flat, hierarchical, imported",
    "policy_id": "which policy exactly",
    "policy_version": "how it acted: limits and decoding",
    "iteration": "turn of the wheel that played it",
    "purpose": "collect, evaluate or imported",
    "attempt": "0, 1, …; from 1000 on: again after broken infrastructure",
    "stop_reason": "success, failure, step_limit, no_action, infrastructure; unknown for imported ones",
    "success": "the environment's claim",
    "score": "last progress, 0 to 1",
    "total_reward": "sum of the steps' rewards",
    "length": "number of steps",
    "final_observation": "what was seen after the last step",
    "final_event": "what the environment answered to the last action",
    "final_state_key": "digest of the last state",
    "error": "what broke, if the infrastructure did",
    "parent_policy_id": "champion of the time",
    "config_digest": "digest of the settings",
    "started_at": "when the episode began",
    "schema_version": "version of the data contract",
    "extra": "the record that it was imported from, JSON by format, or NULL",
    "verified": "1 if every verifier passed, 0 if not, NULL before curation",
    "route": "supervised, executor, continual, held_out, quarantine",
    "route_reason": "why it went there",
    "revoked": "reason of its revocation, or NULL; revoked episodes teach nobody",
}
_STEP_COLUMNS = {
    "trajectory_id": "the episode",
    "index": "0, 1, …",
    "observation": "what the agent saw before it acted",
    "event": "what the environment answered to the action before",
    "note": "a document that the action before opened",
    "place": "where the agent was",
    "state_key": "equal exactly for equal states",
    "valid_actions": "the environment's list, or NULL",
    "thought": "the agent's words to itself",
    "subgoal": "what the planner had ordered",
    "switched": "true where a new subgoal began",
    "action": "what the agent did",
    "reward": "what it got for it",
    "progress": "the environment's progress after the action, 0 to 1",
    "terminated": "the task ended here",
    "truncated": "a limit ended it here",
    "policy_id": "who decided this step",
    "policy_version": "and how",
    "trainable": "false for injected mistakes",
    "prompt_tokens": "tokens read for this decision, planner's included",
    "completion_tokens": "tokens spoken",
    "logprobs": "of each token spoken, among those allowed, or NULL",
    "seconds": "wall clock of decision and step",
    "screenshot": "SHA-256 of the image that the agent saw, or NULL; see images",
}

VIEWS: dict[str, View] = {
    "trajectories": View(
        "an episode with its route",
        """select t.*, r.verified::int as verified, r.route, r.reason as route_reason, v.reason as revoked
           from raw_trajectories t left join raw_routes r using (trajectory_id)
           left join raw_revocations v using (trajectory_id)""",
        _TRAJECTORY_COLUMNS,
    ),
    "steps": View("a turn; join on trajectory_id, order by index", "select * from raw_steps", _STEP_COLUMNS),
    "segments": View(
        "a subgoal of a segmented episode",
        "select * from raw_segments",
        {
            "trajectory_id": "the episode",
            "index": "0, 1, …",
            "start": "first step",
            "end": 'the step after its last; quote it: "end"',
            "subgoal": "what was achieved, or explore",
            "completed": "false for what the episode left unfinished",
            "reward": "sum over its steps",
            "source": "what cut the episode, with its version",
        },
    ),
    "verdicts": View(
        "a verifier's word on an episode",
        "select * from raw_verdicts",
        {
            "trajectory_id": "the episode",
            "verifier": "name",
            "version": "of the verifier",
            "arguments": "JSON",
            "completion": "0 to 100",
            "integrity": "0 to 1",
            "completion_threshold": "what had to be reached",
            "integrity_threshold": "what had to be reached",
            "passed": "both were",
            "confidence": "0 to 1",
            "items": "list of (name, points, fraction, evidence)",
            "raw": "a judge's own words",
        },
    ),
    "routes": View(
        "where a curated episode went",
        "select * from raw_routes",
        {
            "trajectory_id": "the episode",
            "route": "supervised, executor, continual, held_out, quarantine",
            "verified": "every verifier passed",
            "reason": "why",
            "source": "what decided, with its version",
        },
    ),
    "credits": View(
        "what one step or subgoal contributed, by one method",
        "select * from raw_credits",
        {
            "trajectory_id": "the episode",
            "index": "the step where the decision fell",
            "level": "planner or executor; flat for students without levels",
            "method": "name, as gae or hae",
            "arguments": "JSON",
            "advantage": "how much better than expected the decision was",
            "return": 'what followed; quote it: "return"',
            "source": "what computed it, with its version",
        },
    ),
    "embeddings": View(
        "a vector for an episode or a step; compare with list_cosine_similarity",
        "select * from raw_embeddings",
        {
            "trajectory_id": "the episode",
            "index": "the step, or -1 for the whole episode",
            "model": "what made it",
            "vector": "list of float",
        },
    ),
    "images": View(
        "an image that an episode's agent saw",
        "select * from raw_images",
        {
            "trajectory_id": "the episode",
            "sha256": "what steps.screenshot names",
            "media_type": "as image/png",
            "data": "the bytes",
        },
    ),
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
    "pins": View(
        "a version of a dataset",
        "select * from raw_pins",
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
}

PARQUET_KINDS = tuple(ARROW_SCHEMAS)


def kinds_of(statement: str) -> set[str]:
    """Kinds of Parquet file that a statement may read: those whose views it names, or all if it may name any."""
    text = statement.lower()
    if "query" in text:
        return set(PARQUET_KINDS)  # DuckDB's query() and query_table() read what an expression names
    named = [face.statement for name, face in VIEWS.items() if name in text]
    return {kind for kind in PARQUET_KINDS if any(f"raw_{kind}" in read for read in [text, *named])}


CATALOG_KINDS = {
    "policies": "policy",
    "champions": "champion",
    "gates": "gate",
    "lineage": "lineage",
    "iterations": "iteration",
    "pins": "pin",
    "revocations": "revocation",
    "evaluations": "evaluation",
    "quarantined": "quarantined",
}
"""View → catalog table."""
