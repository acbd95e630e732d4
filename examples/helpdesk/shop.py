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
    "refunds": "Delivered at most 30 days ago: refund 100 percent, of electronics 85 percent. Delivered "
    "longer ago, or not delivered yet: no refund, escalate the order with the reason 'not refundable'.",
    "cancellations": "An order in processing can be cancelled. Any other: escalate it with the reason 'already sent'.",
    "addresses": "The address of an order in processing can be changed. Any other: escalate it with the reason "
    "'already sent'.",
}
SCHEMA = """
create table customer (id integer primary key, name text, email text);
create table purchase (customer integer, item text, category text, price integer, status text,
                       delivered_days_ago integer, address text, primary key (customer, item));
create table refund (customer integer, item text, percent integer);
create table escalation (customer integer, item text, reason text);
"""


class Shop:
    """A shop as a seed makes it. Prices are in cents."""

    def __init__(self, seed: int) -> None:
        drawn = random.Random(seed)
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.executescript(SCHEMA)
        for number, name in enumerate(drawn.sample(NAMES, 4), start=drawn.randrange(100, 900)):
            email = f"{name.lower().replace(' ', '.')}{drawn.randrange(100)}@example.com"
            self.db.execute("insert into customer values (?, ?, ?)", (number, name, email))
            for item in drawn.sample(list(ITEMS), 5):
                status = drawn.choice(["processing", "processing", "sent", "delivered", "delivered"])
                days = drawn.choice([5, 12, 25, 40]) if status == "delivered" else None
                price, home = drawn.randrange(10, 300) * 100, f"{drawn.randrange(1, 99)} {drawn.choice(STREETS)}"
                row = (number, item, ITEMS[item], price, status, days, home)
                self.db.execute("insert into purchase values (?, ?, ?, ?, ?, ?, ?)", row)

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        cursor = self.db.execute(query, values)
        return [dict(zip([column[0] for column in cursor.description], row, strict=True)) for row in cursor]

    # -- the tools -------------------------------------------------------------------------------------------------

    def find_customer(self, email: str) -> Any:
        return self.rows("select id, name from customer where email = ?", email) or "no such customer"

    def list_orders(self, customer: int) -> Any:
        rows = self.rows("select item from purchase where customer = ?", customer)
        return [row["item"] for row in rows] or "no orders"

    def get_order(self, customer: int, item: str) -> Any:
        return self.order(customer, item) or "no such order"

    def get_policy(self, topic: str) -> Any:
        return POLICIES.get(topic, f"no such policy; there are {', '.join(POLICIES)}")

    def refund_order(self, customer: int, item: str, percent: int) -> Any:
        return self._changed("insert into refund values (?, ?, ?)", customer, item, percent)

    def cancel_order(self, customer: int, item: str) -> Any:
        statement = "update purchase set status = 'cancelled' where customer = ? and item = ? and status = 'processing'"
        return self._changed(statement, customer, item)

    def change_address(self, customer: int, item: str, address: str) -> Any:
        statement = "update purchase set address = ?3 where customer = ?1 and item = ?2 and status = 'processing'"
        return self._changed(statement, customer, item, address)

    def escalate(self, customer: int, item: str, reason: str) -> Any:
        return self._changed("insert into escalation values (?, ?, ?)", customer, item, reason)

    def order(self, customer: int, item: str) -> dict[str, Any]:
        """What the shop knows of an order; nothing where there is none."""
        return next(iter(self.rows("select * from purchase where customer = ? and item = ?", customer, item)), {})

    def _changed(self, statement: str, customer: int, item: str, *values: Any) -> str:
        if not self.order(customer, item):
            return "no such order"
        changed = self.db.execute(statement, (customer, item, *values)).rowcount
        return "done" if changed else "refused: the order is not in processing"

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
            name, values = right_action(request, self.order(customer, request["item"]))
            getattr(self, name)(**values)

    def state(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that a helpdesk can change."""
        tables = ("purchase", "refund", "escalation")
        return {table: sorted(self.db.execute(f"select * from {table}").fetchall(), key=str) for table in tables}


def right_action(request: dict[str, str], order: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The tool and the arguments that a request calls for, by the policies."""
    which = {"customer": order["customer"], "item": order["item"]}
    if request["kind"] == "refund":
        if order["delivered_days_ago"] is None or order["delivered_days_ago"] > 30:
            return "escalate", {**which, "reason": "not refundable"}
        return "refund_order", {**which, "percent": 85 if order["category"] == "electronics" else 100}
    if order["status"] != "processing":
        return "escalate", {**which, "reason": "already sent"}
    if request["kind"] == "cancel":
        return "cancel_order", which
    return "change_address", {**which, "address": request["address"]}


def verify(shop: Shop, data: dict[str, Any]) -> bool:
    """Is the database as it should be, whatever was said?"""
    right = Shop(data["seed"])
    right.solve(data["customer"], data["requests"])
    return shop.state() == right.state()


ORDER = {"customer": "integer", "item": "string"}
PARAMETERS: dict[str, tuple[str, dict[str, str]]] = {
    "find_customer": ("A customer's id, by e-mail address.", {"email": "string"}),
    "list_orders": ("What a customer has ordered.", {"customer": "integer"}),
    "get_order": ("Price in cents, status and address of an order.", ORDER),
    "get_policy": ("What the shop does: refunds, cancellations or addresses.", {"topic": "string"}),
    "refund_order": ("Pay back so much of the price.", {**ORDER, "percent": "integer"}),
    "cancel_order": ("Cancel an order that is in processing.", ORDER),
    "change_address": ("Send an order that is in processing elsewhere.", {**ORDER, "address": "string"}),
    "escalate": ("Hand an order to a person.", {**ORDER, "reason": "string"}),
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
