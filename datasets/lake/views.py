"""The lake's SQL views over Parquet and the catalog, each documented column by column.

`VIEWS` is the reference: what a row is, what each column holds, and the statement, which reads the raw tables that
`reading.open_views` puts under `raw_*`. Times are seconds since 1970 in UTC.
"""

from __future__ import annotations

from flywheel.arrow import ARROW_SCHEMAS, COLUMNS
from flywheel.datasets.lake.derived import FINAL_OBSERVATION, MESSAGES, STEPS, TOOL_CALLS
from flywheel.datasets.lake.views_catalog import CATALOG_VIEWS, View


def _stored(kind: str) -> dict[str, str]:
    return {name: holds for name, (_, holds) in COLUMNS[kind].items()}


VIEWS: dict[str, View] = {
    "trajectories": View(
        "an episode with its route",
        f"""select t.* replace ({FINAL_OBSERVATION} as final_observation,
                              coalesce(o.outcome.success, o.outcome.score >= 1, t.success) as success,
                              coalesce(o.outcome.score, t.score) as score),
                  t.origin in ('collected', 'recorded', 'trusted') as ours,
                  r.verified::int as verified, r.route, r.reason as route_reason, r.created_at as routed_at,
                  o.outcome.created_at as reported_at, v.reason as revoked
           from raw_trajectories t
           left join (select trajectory_id, unnest(arg_max({{'verified': verified, 'route': route, 'reason': reason,
                                                             'created_at': created_at}}, created_at))
                      from raw_routes group by trajectory_id) r using (trajectory_id)
           left join (select trajectory_id, arg_max({{'success': success, 'score': score, 'created_at': created_at}},
                                                    created_at) as outcome
                      from raw_outcomes where success is not null or score is not null
                      group by trajectory_id) o using (trajectory_id)
           left join raw_revocations v using (trajectory_id)""",
        _stored("trajectories")
        | {
            "ours": "true for all but imported ones: only they count in evaluation, the gate and statistics",
            "verified": "1 if every verifier passed, 0 if not, NULL before curation",
            "route": "supervised, executor, continual, duplicate, held_out, quarantine",
            "route_reason": "why it went there",
            "routed_at": "when",
            "reported_at": "when its outcome was last reported, or NULL",
            "revoked": "reason of its revocation, or NULL; revoked episodes teach nobody",
        },
    ),
    "steps": View("a turn; join on trajectory_id, order by index", f"select {STEPS} from raw_steps", _stored("steps")),
    "messages": View(
        "a message of the conversation, in the order of index and position",
        MESSAGES,
        {
            "trajectory_id": "the episode",
            "index": "the step before whose decision it was said, or that it answers; -1: the task; length: the end",
            "position": "its place there",
            "role": "system, user, assistant, tool, …",
            "content": "its text; of a text environment: feedback, document, view and valid actions as sections",
            "parts": "its content parts, JSON, where it has more than text; images by SHA-256",
            "reasoning": "what the agent thought, or NULL",
            "tool_calls": "list of (id, name, arguments as JSON text)",
            "tool_call_id": "the call that a tool answers, or NULL",
            "name": "the tool that answers, or NULL",
            "error": "what a tool reported as its error, or NULL",
        },
    ),
    "tool_calls": View(
        "a tool call, with what the tool answered",
        TOOL_CALLS,
        {
            "trajectory_id": "the episode",
            "index": "the step of the call",
            "position": "its place among the calls of the step",
            "policy_id": "who called",
            "id": "its id, unique in most episodes",
            "name": "the tool",
            "arguments": "JSON as the agent wrote it; arguments ->> '$.path' reads a value where it is valid",
            "result": "the text that the tool answered, or NULL",
            "error": "what it reported as its error, or NULL",
        },
    ),
    "segments": View(
        "a subgoal of a curated episode",
        "select * from raw_segments where source like 'milestones/%'",
        _stored("segments"),
    ),
    "segmentations": View(
        "a subgoal of an episode, by any source that cut it",
        "select * from raw_segments",
        _stored("segments"),
    ),
    "verdicts": View(
        "a verifier's word on an episode",
        "select * from raw_verdicts",
        _stored("verdicts"),
    ),
    "outcomes": View(
        "what was reported of a recorded run; the newest is in force and shown in trajectories",
        "select * from raw_outcomes",
        _stored("outcomes"),
    ),
    "annotations": View(
        "what a person said of a run: a tag, a note or a label",
        "select * from raw_annotations",
        _stored("annotations"),
    ),
    "tags": View(
        "a tag that a run has, given by a person and not taken back",
        """select trajectory_id, value as tag, max(created_at) as since from raw_annotations where kind = 'tag'
           group by trajectory_id, value having not arg_max(withdrawn, created_at)""",
        {"trajectory_id": "the episode", "tag": "in a word or two", "since": "when it was given"},
    ),
    "labels": View(
        "a person's newest word on whether a run truly succeeded, unless it was taken back",
        """select trajectory_id, who, arg_max(value, created_at) as label, max(created_at) as since
           from raw_annotations where kind = 'label' group by trajectory_id, who
           having not arg_max(withdrawn, created_at)""",
        {
            "trajectory_id": "the episode",
            "who": "the person",
            "label": "succeeded or failed",
            "since": "when it was given",
        },
    ),
    "routes": View(
        "a decision where a curated episode goes; the newest is in force and shown in trajectories",
        "select * from raw_routes",
        _stored("routes"),
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
        _stored("fingerprints"),
    ),
    "credits": View(
        "what one step or subgoal contributed, by one method",
        "select * from raw_credits",
        _stored("credits"),
    ),
    "teacher_logprobs": View(
        "what a teacher would have said at each target of a training row",
        "select * from raw_teacher_logprobs",
        _stored("teacher_logprobs"),
    ),
    "embeddings": View(
        "a vector for an episode or a step; compare with list_cosine_similarity",
        "select * from raw_embeddings",
        _stored("embeddings"),
    ),
    "images": View(
        "an image that an episode's agent saw",
        "select * from raw_images",
        _stored("images"),
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


def reference() -> str:
    """`docs/sql.md`'s sections on the views, as Markdown: `make docs` writes them."""
    sections = []
    for name, view in VIEWS.items():
        rows = "\n".join(f"| `{column}` | {holds} |" for column, holds in view.columns.items())
        sections.append(f"## `{name}`\n\nA row is {view.row}.\n\n| column | holds |\n| --- | --- |\n{rows}\n")
    return "\n".join(sections)
