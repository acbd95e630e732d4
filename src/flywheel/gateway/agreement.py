"""Does a student's answer do what the model's does?"""

from __future__ import annotations

import asyncio
from typing import Any

from flywheel.datasets.formats.chat_messages import ChatMessage, read_messages
from flywheel.datasets.formats.records import ReadContext
from flywheel.messages import Message, agree

Json = dict[str, Any]


def messages_of(raw: Any) -> list[Message]:
    """A message in a chat request or answer; several where it holds results of several tools."""
    return [read.message for read in read_messages(ChatMessage.model_validate(raw), ReadContext())]


def compared(asking: asyncio.Task[Json], answer: Json) -> Json:
    """What the shadow came to, beside the model's answer."""
    if not asking.done():
        return {"shadow": {"problem": "was slower than the model"}}
    if asking.cancelled() or (error := asking.exception()):
        return {"shadow": {"problem": "was stopped" if asking.cancelled() else str(error)}}
    said = asking.result()
    (ours,), (theirs,) = (messages_of(each["choices"][0]["message"]) for each in (said, answer))
    return {"shadow": {**said["flywheel"], "agrees": agree(ours, theirs), "message": said["choices"][0]["message"]}}
