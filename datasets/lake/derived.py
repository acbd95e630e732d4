"""The text of messages in SQL: what `flywheel.messages` derives in Python, for views and for Arrow tables.

A step that has messages stores their text once, in them.
"""

from __future__ import annotations

from collections.abc import Mapping

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from flywheel.arrow import EMPTY_IS_NULL

_TEXTS = """array_to_string(list_filter(list_transform({messages}, lambda message:
    concat_ws(chr(10), nullif(message.content, ''), nullif(message.error, ''))), lambda text: text != ''),
    chr(10) || chr(10))"""
OBSERVATION = f"coalesce(observation, {_TEXTS.format(messages='inputs')})"
FINAL_OBSERVATION = f"coalesce(final_observation, {_TEXTS.format(messages='final_inputs')})"
ACTION = """coalesce(action, case when len("output".tool_calls) > 0
    then array_to_string(list_transform("output".tool_calls, lambda call: call.name || ' ' || call.arguments), chr(10))
    else "output".content end)"""
THOUGHT = """coalesce(thought, concat_ws(chr(10), nullif("output".reasoning, ''),
    case when len("output".tool_calls) > 0 then nullif("output".content, '') end))"""
STEPS = f"* replace ({OBSERVATION} as observation, {ACTION} as action, {THOUGHT} as thought)"
"""What to select from stored steps."""
TRAJECTORIES = f"* replace ({FINAL_OBSERVATION} as final_observation)"
"""What to select from stored trajectories."""


def _escaped(text: str) -> str:
    return f"regexp_replace({text}, '(?m)^([\\[\\\\])', '\\\\\\1', 'g')"


_SECTIONS = f"""concat_ws(chr(10),
    '[feedback] ' || {_escaped("nullif(feedback, '')")},
    '[document] ' || {_escaped("nullif(document, '')")},
    '[view] ' || {_escaped("observation")},
    '[audit] ' || {_escaped("nullif(audit, '')")},
    case when valid_actions is not null then array_to_string(list_prepend('[actions]', list_transform(valid_actions,
        lambda action: '- ' || replace(replace(replace(action, '\\', '\\\\'), chr(10), '\\n'), chr(13), '\\r'))),
        chr(10)) end)"""
_FINAL_SECTIONS = f"""concat_ws(chr(10), '[feedback] ' || {_escaped("nullif(final_feedback, '')")},
    '[view] ' || {_escaped("final_observation")})"""
_CALLS = "STRUCT(id VARCHAR, name VARCHAR, arguments VARCHAR)[]"


def _message(role: str, content: str, reasoning: str = "null") -> str:
    return f"""{{'role': '{role}', 'content': {content}, 'parts': null::varchar, 'reasoning': {reasoning}::varchar,
        'tool_calls': []::{_CALLS}, 'tool_call_id': null::varchar, 'name': null::varchar, 'error': null::varchar}}"""


MESSAGES = f"""
    with conversation as (
        select trajectory_id, "index", list_append(coalesce(inputs, [{_message("user", _SECTIONS)}]),
                   coalesce("output", {_message("assistant", "action", "nullif(thought, '')")})) as messages
        from raw_steps
        union all
        select t.trajectory_id, t.length, coalesce(final_inputs,
            case when coalesce(nullif(final_feedback, ''), nullif(final_observation, '')) is not null
                 then [{_message("user", _FINAL_SECTIONS)}] else [] end)
        from raw_trajectories t
        union all
        select t.trajectory_id, -1, [{_message("system", "coalesce(t.system, t.instruction)")}]
        from raw_trajectories t left join raw_steps s on s.trajectory_id = t.trajectory_id and s."index" = 0
        where s.inputs is null or (t.system is not null and not list_has_any(
            list_transform(s.inputs, lambda message: message.role), ['system', 'developer']))),
    numbered as (
        select trajectory_id, "index", unnest(messages) as message, unnest(range(len(messages))) as position
        from conversation)
    select trajectory_id, "index", position, unnest(message) from numbered"""
"""A row a message."""
TOOL_CALLS = """
    with every_call as (
        select trajectory_id, "index", policy_id, unnest("output".tool_calls) as call,
               unnest(range(len("output".tool_calls))) as position
        from raw_steps where "output" is not null),
    numbered as (
        select *, call.id as id,
               row_number() over (partition by trajectory_id, "index", call.id order by position) as ordinal
        from every_call),
    calls as (
        select *, lead("index") over (partition by trajectory_id, id, ordinal order by "index") as again from numbered),
    every_input as (
        select trajectory_id, "index", unnest(inputs) as answer, unnest(range(len(inputs))) as position from raw_steps
        union all
        select trajectory_id, length, unnest(final_inputs), unnest(range(len(final_inputs))) from raw_trajectories),
    answers as (
        select *, coalesce(answer.tool_call_id, '') as id, row_number() over (
            partition by trajectory_id, "index", coalesce(answer.tool_call_id, '') order by position) as ordinal
        from every_input where answer.role = 'tool')
    select c.trajectory_id, c."index", c.position, c.policy_id, c.id, c.call.name as name,
           c.call.arguments as arguments, case when due then r.answer.content end as result,
           case when due then r.answer.error end as error
    from (select *, coalesce(again, 2147483647) as until from calls) c
    asof left join answers r on r.trajectory_id = c.trajectory_id and r.id = c.id and r.ordinal = c.ordinal
        and c."index" < r."index",
    lateral (select r."index" <= c.until as due)"""
"""A row a tool call. Ids may be used again, also within a step: a call is answered by the next answer to its id, before
that id is called again."""
SOURCES = {"observation": "inputs", "action": "output", "thought": "output"}
"""A step's column → the column of messages that it is derived from."""
FINAL_SOURCES = {"final_observation": "final_inputs"}
"""The same of a trajectory."""


def steps_with_text(steps: pa.Table) -> pa.Table:
    """Stored steps, all columns or some, whose texts are there in every row. Columns that older files lack are NULL."""
    return _with_text(steps, STEPS, SOURCES)


def trajectories_with_text(trajectories: pa.Table) -> pa.Table:
    """Stored trajectories whose texts are there in every row."""
    return _with_text(trajectories, TRAJECTORIES, FINAL_SOURCES)


def _with_text(table: pa.Table, selection: str, sources: Mapping[str, str]) -> pa.Table:
    stored = [name for name in dict.fromkeys(sources.values()) if name in table.column_names]
    if any(table[name].null_count < table.num_rows for name in stored):
        with duckdb.connect() as connection:
            connection.register("stored", table)
            table = connection.sql(f"select {selection} from stored").to_arrow_table().cast(table.schema)
    for name in EMPTY_IS_NULL.intersection(table.column_names):
        if table[name].null_count:
            place = table.column_names.index(name)
            table = table.set_column(place, table.schema.field(place), pc.fill_null(table[name], ""))
    return table
