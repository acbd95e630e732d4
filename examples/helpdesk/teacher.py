"""A scripted teacher behind an OpenAI-compatible server. It stands for a paid model, and errs now and then.

    python teacher.py 8411 0.2

The second argument is the share of conversations in which it makes one mistake.
"""

from __future__ import annotations

import json
import random
import re
import sys
from typing import Any

from aiohttp import web
from shop import right_action

ASKED = re.compile(
    r"(?P<refund>The (\w+) arrived broken|I send the (\w+) back)"
    r"|(?P<cancel>cancel the (\w+) that|need the (\w+) any more)"
    r"|(?P<address>Send the (\w+) to (.+?) instead\.|the (\w+) must go to (.+?)\.)"
)
TOPICS = {"refund": "refunds", "cancel": "cancellations", "address": "addresses"}
Call = tuple[str, dict[str, Any]]


def requests_of(words: str) -> list[dict[str, str]]:
    """What a customer asks for."""
    found = []
    for match in ASKED.finditer(words):
        item, *more = [group for group in match.groups()[1:] if group and group != match[0]]
        request = {"kind": match.lastgroup or "", "item": item}
        found.append(request | ({"address": more[0]} if more else {}))
    return found


def next_call(messages: list[dict[str, Any]]) -> Call | None:
    """What to do next, read from the conversation alone; None: all is done."""
    calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
    results = [message["content"] for message in messages if message["role"] == "tool"]
    known = [(call["name"], json.loads(call["arguments"]), result) for call, result in zip(calls, results, strict=True)]
    words = messages[1]["content"]
    customers = [json.loads(result) for name, _, result in known if name == "find_customer"]
    if not customers:
        return "find_customer", {"email": re.findall(r"\((.+?)\)", words)[0]}
    listed = [json.loads(result) for name, _, result in known if name == "list_orders"]
    if not listed:
        return "list_orders", {"customer": customers[0][0]["id"]}
    customer = customers[0][0]["id"]
    orders = {given["item"]: json.loads(result) for name, given, result in known if name == "get_order"}
    topics = {given["topic"] for name, given, _ in known if name == "get_policy"}
    acted = {given["item"] for name, given, _ in known if name != "get_order" and "item" in given}
    for request in requests_of(words):
        item = request["item"]
        if item in acted:
            continue
        if item not in orders:
            return "get_order", {"customer": customer, "item": item}
        if TOPICS[request["kind"]] not in topics:
            return "get_policy", {"topic": TOPICS[request["kind"]]}
        return right_action(request, orders[item])
    return None


def mistaken(call: Call | None, messages: list[dict[str, Any]], rate: float) -> Call | None:
    """The call, or in some conversations, once, another one: too little money, the wrong reason, or nothing more."""
    drawn = random.Random(messages[1]["content"])
    if drawn.random() >= rate or call is None:
        return call
    kind, name, values = drawn.choice(["money", "reason", "stop"]), *call
    if kind == "money" and name == "refund_order":
        return name, {**values, "percent": 50}
    if kind == "reason" and name == "escalate":
        return name, {**values, "reason": "the customer is angry"}
    acts = sum(bool(message.get("tool_calls")) for message in messages)
    return None if kind == "stop" and acts >= 6 else call


async def chat(request: web.Request) -> web.Response:
    body = await request.json()
    messages = body["messages"]
    call = mistaken(next_call(messages), messages, request.app[RATE])
    message: dict[str, Any] = {"role": "assistant", "content": "All is done. Have a nice day!"}
    if call:
        function = {"name": call[0], "arguments": json.dumps(call[1])}
        entry = {"id": f"call_{random.getrandbits(48):x}", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [entry]}
    read, written = (sum(len(json.dumps(each)) for each in several) // 4 for several in (messages, [message]))
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if call else "stop"}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
    return web.json_response({**head, "choices": [choice], "usage": usage})


RATE = web.AppKey("rate", float)

if __name__ == "__main__":
    app = web.Application(client_max_size=1 << 24)
    app[RATE] = float(sys.argv[2])
    app.router.add_post("/v1/chat/completions", chat)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
