"""Does a student's answer do what the model's does?"""

from __future__ import annotations

import asyncio
from typing import Any

from flywheel.datasets.formats.chat_messages import messages_of
from flywheel.messages import agree

Json = dict[str, Any]


def compared(asking: asyncio.Task[Json], answer: Json) -> Json:
    """What the shadow came to, beside the model's answer."""
    if not asking.done():
        return {"shadow": {"problem": "was slower than the model"}}
    if asking.cancelled() or (error := asking.exception()):
        return {"shadow": {"problem": "was stopped" if asking.cancelled() else str(error)}}
    answered = asking.result()
    (ours,), (theirs,) = (messages_of([each["choices"][0]["message"]]) for each in (answered, answer))
    message = answered["choices"][0]["message"]
    return {"shadow": {**answered["flywheel"], "agrees": agree(ours, theirs), "message": message}}
