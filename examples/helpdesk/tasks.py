"""Customers' requests by template; some templates are held out, so that a student never sees their like.

python tasks.py 600 > tasks.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from itertools import permutations
from typing import Any

from shop import STREETS, Shop

KINDS = ("refund", "cancel", "address")
PHRASES = {
    "refund": ("The {item} arrived broken, I want my money back.", "I send the {item} back, please refund it."),
    "cancel": ("Please cancel the {item} that I ordered.", "I do not need the {item} any more, cancel it."),
    "address": ("Send the {item} to {address} instead.", "I have moved: the {item} must go to {address}."),
}
TEMPLATES = [
    *(kinds for length in (2, 3) for kinds in permutations(KINDS, length)),
    *((first, first, second, third) for first, second, third in permutations(KINDS)),
    *((first, second, third, first, second) for first, second, third in permutations(KINDS)),
]
HELD_OUT = frozenset({("cancel", "refund"), ("address", "cancel", "refund"), ("refund", "refund", "address", "cancel")})


def task(number: int) -> dict[str, Any]:
    """The n-th task, the same each time."""
    drawn = random.Random(f"helpdesk {number}")
    kinds, seed = drawn.choice(TEMPLATES), drawn.randrange(2**31)
    shop = Shop(seed)
    customer = drawn.choice(shop.rows("select * from customer"))
    orders = shop.rows("select item, status from purchase where customer = ?", customer["id"])
    drawn.shuffle(orders)
    requests = []
    for kind in kinds:
        usual = "delivered" if kind == "refund" else "processing"
        if drawn.random() < 0.7:
            orders.sort(key=lambda order: order["status"] == usual)
        request = {"kind": kind, "item": orders.pop()["item"]}
        if kind == "address":
            request["address"] = f"{drawn.randrange(1, 99)} {drawn.choice(STREETS)}"
        requests.append(request)
    said = [drawn.choice(PHRASES[request["kind"]]).format(**request) for request in requests]
    greeting = drawn.choice(["Hello", "Hi", "Good morning"])
    words = f"{greeting}, this is {customer['name']} ({customer['email']}). {' '.join(said)} Thank you!"
    split = "test" if kinds in HELD_OUT else drawn.choices(["train", "dev", "test"], [8, 1, 1])[0]
    return {
        "id": f"ticket-{number}",
        "instruction": words,
        "split": split,
        "family": ("new " if kinds in HELD_OUT else "") + " ".join(kinds),
        "data": {"seed": seed, "customer": customer["id"], "requests": requests},
    }


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        print(json.dumps(task(number)))
