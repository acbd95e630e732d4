"""Sessions as trajectories: messages as they went over the wire, tools, tokens, and private data replaced."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from flywheel.config.root import Config
from flywheel.datasets.formats.chat_messages import ChatMessage, tools_of
from flywheel.datasets.formats.importing import check_types
from flywheel.datasets.formats.model_calls import ModelCall, run_of_calls
from flywheel.datasets.formats.records import ReadContext, episode, explain, written_json
from flywheel.datasets.lake.provenance import check_numbers
from flywheel.errors import RecordError
from flywheel.gateway.dialects import CHAT, DIALECTS, Json
from flywheel.gateway.placeholders import Placeholders
from flywheel.gateway.spool import Call, SessionPart
from flywheel.gateway.threads import Thread, threads_of
from flywheel.trajectory import Split, Task, Trajectory, TrajectoryOrigin, trajectory_id

RECORDED = "recorded"
"""Role and purpose of an agent's own run that went through the gateway."""
OTHER_THREADS = 10_000
"""Attempts from here on are branches and side calls of another one."""


def trajectories_of(
    session: SessionPart, before: Sequence[SessionPart], calls: Sequence[Call], task: Task, attempt: int, config: Config
) -> tuple[list[Trajectory], dict[str, str]]:
    """(a session's trajectories, the main one first; answered calls that cannot be read: id → why). `before`: its
    earlier parts.

    Ids follow from session, model and place, so that whoever does it again stores nothing twice.
    """
    failed = Counter(call.problem for call in calls if call.problem)
    threads = threads_of([call for call in calls if not call.problem])
    private = Placeholders(config.gateway.private, config.lake.redact)
    begun = sum(part.trajectories for part in before)
    main = next((part.trajectory_id for part in before if part.trajectory_id), None)
    made, ids, unread = list[Trajectory](), dict[int | None, str](), dict[str, str]()
    for number, thread in enumerate(threads):
        try:
            place = attempt + OTHER_THREADS * (begun + number)
            trajectory = _trajectory(thread, session.name, task, place, failed, config)
            check_types(trajectory)
            check_numbers(trajectory)
        except (RecordError, ValueError, TypeError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else str(error)
            unread |= {call.id: reason for call in thread.calls}
            continue
        made.append(private.replaced(replace(trajectory, parent_trajectory_id=ids.get(thread.branch_of, main))))
        ids[number] = trajectory.trajectory_id
        main, failed = main or trajectory.trajectory_id, Counter()
    return made, unread


def split_of(session: str, config: Config) -> Split:
    """The split of a new session, drawn by its name."""
    drawn = int.from_bytes(hashlib.blake2b(session.encode(), digest_size=8).digest()) / 2**64
    test, dev = config.gateway.test_share, config.gateway.dev_share
    return Split.TEST if drawn < test else Split.DEV if drawn < test + dev else Split.TRAIN


def task_of_session(session: SessionPart, config: Config, decided: Split | None = None) -> tuple[Task, int]:
    """(the task that a session is of, which attempt at it): what was declared, or itself."""
    if session.task:
        declared = json.loads(session.task)
        attempt = declared.pop("attempt")
        return Task(config.gateway.environment, "{}", **{**declared, "split": Split(declared["split"])}), attempt
    return Task(config.gateway.environment, "{}", decided or split_of(session.name, config), 0, name=session.name), 0


def _trajectory(
    thread: Thread, session: str, task: Task, attempt: int, failed: Counter[str], config: Config
) -> Trajectory:
    source = ReadContext()
    tools, changed = _tools(thread.calls)
    extra: Json = {"session": session, "calls": [call.id for call in thread.calls]}
    extra |= {"failed_calls": failed} if failed else {}
    extra |= {"tools_changed_at": changed} if changed else {}
    several = {call.id: call.response for call in thread.calls if len(call.tails) > 1}
    extra |= {"all_answers": several} if several else {}
    for name, counts in _routed(thread.calls).items():
        extra |= {name: counts} if counts else {}
    following = [*(call.answer for call in thread.calls[1:]), 0]
    calls = [_model_call(call, answer, config) for call, answer in zip(thread.calls, following, strict=True)]
    before = [message for call in thread.context for message in _conversation(call)]
    calls[0] = replace(calls[0], sent=[*before, *calls[0].sent])
    run = run_of_calls(calls, extra, source, tools=[tools], started_at=thread.calls[0].began)
    first = thread.context[0] if thread.context else thread.calls[0]
    imported = episode("gateway", replace(run, system=run.system or _system(first)), task.split)
    if not task.instruction:
        task = replace(task, seed=imported.seed, instruction=imported.instruction)
    return replace(
        imported,
        trajectory_id=trajectory_id(task, imported.policy_id, imported.policy_version, RECORDED, attempt),
        environment=task.environment,
        task_id=task.task_id,
        task_group=task.group,
        task_name=task.name,
        task_data=task.data,
        family=task.family,
        seed=task.seed,
        instruction=task.instruction,
        policy=RECORDED,
        purpose=RECORDED,
        attempt=attempt,
        origin=TrajectoryOrigin.RECORDED,
        origin_source=session,
    )


def _model_call(call: Call, answer: int, config: Config) -> ModelCall:
    """A call as importers read it. `answer`: which of its answers the run goes on from."""
    dialect = DIALECTS[call.dialect]
    usage = call.response.get("usage") or {}
    prompt, completion = (usage.get(name) if isinstance(usage.get(name), int) else None for name in dialect.usage)
    return ModelCall(
        dialect.messages(dialect.items_of(call.request)),
        _answer(call, answer),
        str(call.response.get("model") or call.request.get("model") or ""),
        prompt,
        completion,
        cost=0.0 if "student" in _notes(call) else config.gateway.cost_of(prompt, completion),
        seconds=call.seconds,
        logprobs=_logprobs(call, answer),
        has_history=False,
    )


def _notes(call: Call) -> Json:
    """What the gateway noted of an answer."""
    notes = call.response.get("flywheel")
    return notes if isinstance(notes, dict) else {}


def _routed(calls: Sequence[Call]) -> dict[str, Counter[str]]:
    """Why a student that was asked did not answer, and how often a shadow agreed."""
    notes = list(map(_notes, calls))
    shadows = [note["shadow"] for note in notes if "shadow" in note]
    return {
        "fallbacks": Counter(note["fallback"] for note in notes if "fallback" in note),
        "shadows": Counter(
            shadow.get("problem") or ("agrees" if shadow["agrees"] else "differs") for shadow in shadows
        ),
    }


def _answer(call: Call, number: int) -> ChatMessage:
    dialect = DIALECTS[call.dialect]
    messages = dialect.messages(dialect.answers(call.response)[number])
    if len(messages) != 1:
        raise RecordError(f"an answer of {len(messages)} messages")
    return messages[0]


def _conversation(call: Call) -> Iterator[ChatMessage]:
    """What was new in a call, and its answer."""
    dialect = DIALECTS[call.dialect]
    yield from dialect.messages(dialect.items_of(call.request))
    yield _answer(call, 0)


def _tools(calls: Sequence[Call]) -> tuple[str | None, list[int]]:
    """(every tool that was offered, each as it was last; the calls from which on one of them was another)."""
    offered: dict[str, Any] = {}
    changed = []
    for place, call in enumerate(calls):
        text = tools_of(call.request.get("tools"), call.request.get("functions"))
        tools = {str((tool.get("function") or tool).get("name")): tool for tool in json.loads(text or "[]")}
        if any(offered.get(name, tool) != tool for name, tool in tools.items()):
            changed.append(place)
        offered |= tools
    return written_json(list(offered.values())) if offered else None, changed


def _system(call: Call) -> str | None:
    """The prompt that stands beside the conversation, in dialects that have it there."""
    name = DIALECTS[call.dialect].system
    prompt = call.request.get(name) if name else None
    if isinstance(prompt, list):
        prompt = "\n\n".join(str(part.get("text", "")) for part in prompt if isinstance(part, dict))
    return prompt if isinstance(prompt, str) and prompt else None


def _logprobs(call: Call, answer: int) -> tuple[float, ...] | None:
    """Of an answer's tokens, where they were asked for."""
    if call.dialect != CHAT.name:
        return None
    content = (call.response["choices"][answer].get("logprobs") or {}).get("content")
    return tuple(float(token["logprob"]) for token in content) if content else None
