"""A small shop in SQLite, the eight tools that its helpdesk has, and what should have been done with a request."""

from __future__ import annotations

import json
import random
import sqlite3
from typing import Any

NAMES = ("Ann Berg", "Bo Diaz", "Cleo Fox", "Dan Gray", "Eva Hall", "Finn Ito", "Gia Kent", "Hal Lund", "Ida Moss")
STREETS = ("Elm Street", "Mill Road", "High Street", "Park Lane", "Station Road", "Lake View")
ITEMS = {
    "lamp": "home",
    "kettle": "home",
    "rug": "home",
    "mirror": "home",
    "phone": "electronics",
    "camera": "electronics",
    "speaker": "electronics",
    "tent": "outdoor",
    "backpack": "outdoor",
    "stove": "outdoor",
}
POLICIES = {
    "refunds": "Delivered at most 30 days ago: refund the price, for electronics the price less 15 percent. Delivered "
    "longer ago, or not delivered yet: no refund, escalate the order with the reason 'not refundable'.",
    "cancellations": "An order in processing can be cancelled. Any other: escalate it with the reason 'already sent'.",
    "addresses": "The address of an order in processing can be changed. Any other: escalate it with the reason "
    "'already sent'.",
}
SCHEMA = """
create table customer (id integer primary key, name text, email text);
create table purchase (id integer primary key, customer integer, item text, category text, price integer, status text,
                       delivered_days_ago integer, address text);
create table refund (purchase integer, amount integer);
create table escalation (purchase integer, reason text);
"""


class Shop:
    """A shop as a seed makes it. Prices are in cents."""

    def __init__(self, seed: int) -> None:
        drawn = random.Random(seed)
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.executescript(SCHEMA)
        orders = iter(drawn.sample(range(10_000, 100_000), 20))
        for number, name in enumerate(drawn.sample(NAMES, 4), start=drawn.randrange(100, 900)):
            email = f"{name.lower().replace(' ', '.')}{drawn.randrange(100)}@example.com"
            self.db.execute("insert into customer values (?, ?, ?)", (number, name, email))
            for item in drawn.sample(list(ITEMS), 5):
                status = drawn.choice(["processing", "processing", "sent", "delivered", "delivered"])
                days = drawn.choice([5, 12, 25, 40]) if status == "delivered" else None
                price, home = drawn.randrange(10, 300) * 100, f"{drawn.randrange(1, 99)} {drawn.choice(STREETS)}"
                row = (next(orders), number, item, ITEMS[item], price, status, days, home)
                self.db.execute("insert into purchase values (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        cursor = self.db.execute(query, values)
        return [dict(zip([column[0] for column in cursor.description], row, strict=True)) for row in cursor]

    # -- the tools -------------------------------------------------------------------------------------------------

    def find_customer(self, email: str) -> Any:
        return self.rows("select id, name from customer where email = ?", email) or "no such customer"

    def list_orders(self, customer: int) -> Any:
        return self.rows("select id as 'order', item from purchase where customer = ?", customer) or "no orders"

    def get_order(self, order: int) -> Any:
        found = self.rows("select * from purchase where id = ?", order)
        return found[0] if found else "no such order"

    def get_policy(self, topic: str) -> Any:
        return POLICIES.get(topic, f"no such policy; there are {', '.join(POLICIES)}")

    def refund_order(self, order: int, cents: int) -> Any:
        return self._changed("insert into refund values (?, ?)", order, cents)

    def cancel_order(self, order: int) -> Any:
        return self._changed("update purchase set status = 'cancelled' where id = ?1 and status = 'processing'", order)

    def change_address(self, order: int, address: str) -> Any:
        statement = "update purchase set address = ?2 where id = ?1 and status = 'processing'"
        return self._changed(statement, order, address)

    def escalate(self, order: int, reason: str) -> Any:
        return self._changed("insert into escalation values (?, ?)", order, reason)

    def _changed(self, statement: str, *values: Any) -> str:
        if not self.rows("select 1 from purchase where id = ?", values[0]):
            return "no such order"
        return "done" if self.db.execute(statement, values).rowcount else "refused: the order is not in processing"

    def call(self, name: str, arguments: str) -> str:
        """What a tool answers; a call that cannot be made is told why."""
        if name not in PARAMETERS:
            return f"error: there is no tool {name}"
        try:
            return json.dumps(getattr(self, name)(**json.loads(arguments)))
        except (TypeError, ValueError, sqlite3.Error) as error:
            return f"error: {error}"

    # -- what should have been done --------------------------------------------------------------------------------

    def solve(self, customer: int, requests: list[dict[str, str]]) -> None:
        """Do what the policies ask for."""
        for request in requests:
            (order,) = self.rows("select * from purchase where customer = ? and item = ?", customer, request["item"])
            name, values = right_action(request, order)
            getattr(self, name)(**values)

    def state(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that a helpdesk can change."""
        tables = ("purchase", "refund", "escalation")
        return {table: sorted(self.db.execute(f"select * from {table}").fetchall(), key=str) for table in tables}


def right_action(request: dict[str, str], order: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The tool and the arguments that a request calls for, by the policies."""
    if request["kind"] == "refund":
        if order["delivered_days_ago"] is None or order["delivered_days_ago"] > 30:
            return "escalate", {"order": order["id"], "reason": "not refundable"}
        share = 85 if order["category"] == "electronics" else 100
        return "refund_order", {"order": order["id"], "cents": order["price"] * share // 100}
    if order["status"] != "processing":
        return "escalate", {"order": order["id"], "reason": "already sent"}
    if request["kind"] == "cancel":
        return "cancel_order", {"order": order["id"]}
    return "change_address", {"order": order["id"], "address": request["address"]}


def verify(shop: Shop, data: dict[str, Any]) -> bool:
    """Is the database as it should be, whatever was said?"""
    right = Shop(data["seed"])
    right.solve(data["customer"], data["requests"])
    return shop.state() == right.state()


PARAMETERS: dict[str, tuple[str, dict[str, str]]] = {
    "find_customer": ("A customer's id, by e-mail address.", {"email": "string"}),
    "list_orders": ("The orders of a customer.", {"customer": "integer"}),
    "get_order": ("Price in cents, status and address of an order.", {"order": "integer"}),
    "get_policy": ("What the shop does: refunds, cancellations or addresses.", {"topic": "string"}),
    "refund_order": ("Pay back so many cents.", {"order": "integer", "cents": "integer"}),
    "cancel_order": ("Cancel an order that is in processing.", {"order": "integer"}),
    "change_address": ("Send an order that is in processing elsewhere.", {"order": "integer", "address": "string"}),
    "escalate": ("Hand an order to a person.", {"order": "integer", "reason": "string"}),
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {field: {"type": kind} for field, kind in fields.items()},
                "required": list(fields),
            },
        },
    }
    for name, (about, fields) in PARAMETERS.items()
]
