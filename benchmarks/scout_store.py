"""Inspect Scout's transcript store on the same made-up trajectories; called by lake.py in an environment of its own.

python scout_store.py FOLDER TRAJECTORIES STEPS BATCH
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser
from inspect_scout import Transcript, columns, transcripts_db, transcripts_from
from made_up import trajectories

from flywheel.trajectory import Trajectory


def transcript(one: Trajectory) -> Transcript:
    messages: list[ChatMessage] = []
    for step in one.steps:
        messages += [ChatMessageUser(content=step.observation), ChatMessageAssistant(content=step.action)]
    return Transcript(
        transcript_id=one.trajectory_id,
        task_id=one.task_id,
        agent=one.policy,
        success=one.success,
        messages=messages,
        metadata={"steps": [{"reward": step.reward, "progress": step.progress} for step in one.steps]},
    )


def used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def main(folder: str, count: int, steps: int, batch: int) -> None:
    every = list(trajectories(count, steps))
    began = used()
    async with transcripts_db(folder) as database:
        for start in range(0, count, batch):
            made: Iterator[Transcript] = map(transcript, every[start : start + batch])
            await database.insert(list(made), commit=False)
        await database.commit()
    ingest = used() - began
    began_at = time.perf_counter()
    async with transcripts_from(folder).reader() as reader:
        found: dict[tuple[str, str], list[bool]] = {}
        async for info in reader.index():
            found.setdefault((info.task_id or "", info.agent or ""), []).append(bool(info.success))
    question = time.perf_counter() - began_at
    began_at = time.perf_counter()
    chosen = transcripts_from(folder).where(columns.transcript_id == every[count // 2].trajectory_id)
    async with chosen.reader() as reader:
        async for info in reader.index():
            await reader.read(info, content=_everything())
    by_id = time.perf_counter() - began_at
    print(json.dumps({"ingest": ingest, "question": question, "by id": by_id, "groups": len(found)}))


def _everything():  # type: ignore[no-untyped-def]
    from inspect_scout import TranscriptContent

    return TranscriptContent(messages="all", events="all")


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True)
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
