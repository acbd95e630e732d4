"""The SQL face of the lake: one documented view a subject, over Parquet and the catalog.

`VIEWS` is the reference: what a row is, what each column holds, and the statement, which reads the raw tables that
`reading.open_views` puts under `raw_*`. Times are seconds since 1970 in UTC.
"""

from __future__ import annotations

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.lake.views_catalog import CATALOG_VIEWS, View

_TRAJECTORY_COLUMNS = {
    "trajectory_id": "digest of task, policy, version, purpose and attempt",
    "environment": "name of the environment",
    "parameters": "the environment's settings, canonical JSON",
    "split": "train, dev or test",
    "seed": "what the environment was reset with",
    "task_id": "digest of environment, parameters, split and seed",
    "task_group": "tasks of one group never lie in two splits",
    "instruction": "what the agent was told",
    "policy": "role of the policy: expert, noisy_expert, random, chat, flat, hierarchical, tutored, human, imported",
    "policy_id": "which policy exactly",
    "policy_version": "how it acted: limits and decoding",
    "iteration": "turn of the wheel that played it",
    "purpose": "collect, self_play, evaluate or imported",
    "attempt": "0, 1, …; from 1000 on: again after broken infrastructure",
    "stop_reason": "success, failure, step_limit and other limits, no_action, gave_up, malformed, infrastructure",
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
    "tokens": "read and written for it, also for a last decision that led to no step",
    "cost": "of them, by the endpoint's prices",
    "subject": "whose data this is, or NULL; see flywheel lake purge --subject",
    "origin": "collected here, trusted, or imported; NULL before schema 5, when a record's own word counted",
    "origin_source": "the file that an import read",
    "origin_by": "who imported it",
    "claims": "what an imported record of ours says of its own policy, purpose, iteration and attempt, JSON, or NULL",
    "ours": "true for collected and trusted ones: only they count in evaluation, the gate and statistics",
    "verified": "1 if every verifier passed, 0 if not, NULL before curation",
    "route": "supervised, executor, continual, duplicate, held_out, quarantine",
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
    "label": "what a teacher that watched would have done, or NULL",
    "audit": "why an auditor had refused to believe that the task was done, just before",
    "cost": "of the decision, by the endpoint's prices",
    "top_tokens": "the likeliest tokens at each token of the answer, or NULL",
    "top_logprobs": "their log-probabilities",
}

VIEWS: dict[str, View] = {
    "trajectories": View(
        "an episode with its route",
        """select t.*, coalesce(t.origin in ('collected', 'trusted'), t.purpose <> 'imported') as ours,
                  r.verified::int as verified, r.route, r.reason as route_reason, v.reason as revoked
           from raw_trajectories t
           left join (select trajectory_id, unnest(arg_max({'verified': verified, 'route': route, 'reason': reason},
                                                            coalesce(created_at, 0)))
                      from raw_routes group by trajectory_id) r using (trajectory_id)
           left join raw_revocations v using (trajectory_id)""",
        _TRAJECTORY_COLUMNS,
    ),
    "steps": View("a turn; join on trajectory_id, order by index", "select * from raw_steps", _STEP_COLUMNS),
    "segments": View(
        "a subgoal of a curated episode",
        "select * from raw_segments where source like 'milestones/%'",
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
    "segmentations": View(
        "a subgoal of an episode, by any source that cut it",
        "select * from raw_segments",
        {
            "trajectory_id": "the episode",
            "index": "0, 1, …",
            "start": "first step",
            "end": 'the step after its last; quote it: "end"',
            "subgoal": "what was achieved, ordered or done there",
            "completed": "false for what the episode left unfinished",
            "reward": "sum over its steps",
            "source": "milestones, lived, changes or chat, with its version",
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
            "created_at": "when",
        },
    ),
    "routes": View(
        "a decision where a curated episode goes; the newest is in force and shown in trajectories",
        "select * from raw_routes",
        {
            "trajectory_id": "the episode",
            "route": "supervised, executor, continual, duplicate, held_out, quarantine",
            "verified": "every verifier passed",
            "reason": "why",
            "source": "what decided, with its version",
            "created_at": "when",
        },
    ),
    "relabelled": View(
        "a completed segment of an unverified episode: executor data, under the name of what it did achieve",
        """select s.trajectory_id, s."index", s.start, s."end", s.subgoal,
                  coalesce(nullif(p.subgoal, ''), t.instruction) as relabelled_from
           from segments s join trajectories t using (trajectory_id)
           join raw_steps p on p.trajectory_id = s.trajectory_id and p."index" = s.start
           where t.route = 'executor' and t.revoked is null and s.completed""",
        {
            "trajectory_id": "the episode",
            "index": "of the segment",
            "start": "first step",
            "end": 'the step after its last; quote it: "end"',
            "subgoal": "what it achieved",
            "relabelled_from": "what the agent was after when it began: its subgoal, or its instruction",
        },
    ),
    "pairs": View(
        "a preference pair: a verified and an honestly failed training episode of one task",
        """select g.task_id, g.trajectory_id as chosen, b.trajectory_id as rejected,
                  g.length as chosen_length, b.length as rejected_length, b.score as rejected_score
           from trajectories g join trajectories b using (task_id)
           where g.route in ('supervised', 'duplicate') and b.route in ('executor', 'continual') and b.ours
             and g.revoked is null and b.revoked is null""",
        {
            "task_id": "the task of both",
            "chosen": "id of the verified episode",
            "rejected": "id of the failed one",
            "chosen_length": "steps",
            "rejected_length": "steps",
            "rejected_score": "how far the failed one came, 0 to 1",
        },
    ),
    "fingerprints": View(
        "what an episode is compared by",
        "select * from raw_fingerprints",
        {
            "trajectory_id": "the episode",
            "actions": "digest of task and actions",
            "record": "digest of all that one playing leaves, its timings included; empty where it has none",
            "essential": "digest of task and actions, less loops that led back to the same state",
            "signature": "MinHash of actions and what they met",
            "bands": "digests of runs of the signature; one in common makes a candidate",
            "duplicate_of": "the earlier training episode that says the same, or NULL",
            "similarity": "1 for equal actions, else the estimated Jaccard similarity to it, or NULL",
            "source": "what computed it, with its version",
        },
    ),
    "credits": View(
        "what one step or subgoal contributed, by one method",
        "select * from raw_credits",
        {
            "trajectory_id": "the episode",
            "index": "the step where the decision fell",
            "level": "planner, executor or switch (is the subgoal done?); flat where levels are not told apart",
            "method": "name, as gae or hae",
            "arguments": "JSON",
            "advantage": "how much better than expected the decision was",
            "return": 'what followed; quote it: "return"',
            "source": "what computed it, with its version",
        },
    ),
    "teacher_logprobs": View(
        "what a teacher would have said at each target of a training row",
        "select * from raw_teacher_logprobs",
        {
            "trajectory_id": "the episode",
            "policy_id": "the teacher",
            "role": "planner, executor or flat",
            "draw": "digest of how rows are drawn and renamed",
            "epoch": "0, 1, …",
            "row": "place of the row in its epoch",
            "k": "tokens that are told of each target",
            "top_ids": "k tokens a target, one target after another",
            "top_logprobs": "their log-probabilities",
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
} | CATALOG_VIEWS

PARQUET_KINDS = tuple(ARROW_SCHEMAS)


def kinds_of(statement: str) -> set[str]:
    """Kinds of Parquet file that a statement may read: those whose views it names, or all if it may name any."""
    text = statement.lower()
    if "query" in text:
        return set(PARQUET_KINDS)  # DuckDB's query() and query_table() read what an expression names
    read, pending = "", text
    while pending:
        read += pending
        pending = " ".join(
            face.statement for name, face in VIEWS.items() if name in pending and face.statement not in read
        )
    return {kind for kind in PARQUET_KINDS if f"raw_{kind}" in read}
