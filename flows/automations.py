"""Automations of a Prefect server: what starts a distillation, and who is told of what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import (
    ActionTypes,
    AutomationCore,
    CallWebhook,
    EventTrigger,
    Posture,
    ResourceSpecification,
    RunDeployment,
    SendNotification,
)
from prefect.exceptions import ObjectNotFound

from flywheel.config import Config
from flywheel.config_flows import Occasion
from flywheel.datasets.lake import Lake
from flywheel.errors import PrerequisiteError
from flywheel.flows.events import CROWNED, DROPPED, READY, SPENT, TAGGED, lake_resource, resource

TITLE = "{{ event.payload['title'] }}"
MESSAGES: dict[Occasion, tuple[str, str]] = {
    "failed": ("prefect.flow-run.Failed", "a run failed: {{ flow_run.name }}: {{ flow_run.state.message }}"),
    "champion": (
        f"flywheel.{CROWNED}",
        "new champion {{ event.payload['champion'] }}: {{ event.payload['decision'] }}",
    ),
    "budget": (f"flywheel.{SPENT}", "{{ event.payload['message'] }}"),
    "drop": (
        f"flywheel.{DROPPED}",
        "{{ event.payload['slice'] }}: {{ event.payload['before'] }} before, {{ event.payload['after'] }} now",
    ),
}
"""Occasion → (event, what is said of it, as a template of Prefect's)."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """One automation: on an event about a resource, do something."""

    name: str
    event: str
    about: dict[str, str]
    action: ActionTypes


def install(config: Config, turn_id: UUID, distill_id: UUID) -> list[str]:
    """Make the automations that the config asks for in place of those of before; their names."""
    with get_client(sync_client=True) as client:
        wanted = [*_triggers(config, distill_id), *_notices(config, client, turn_id, distill_id)]
        prefix = f"{resource(config.name)}: "
        for known in client.read_automations():
            if known.name.startswith(prefix):
                client.delete_automation(known.id)
        for one in wanted:
            client.create_automation(_automation(prefix, one))
    return [f"{prefix}{one.name}" for one in wanted]


def _automation(prefix: str, one: Reaction) -> AutomationCore:
    about = ResourceSpecification(root={key: [value] for key, value in one.about.items()})
    trigger = EventTrigger(expect={one.event}, match=about, posture=Posture.Reactive, threshold=1)
    if one.event.startswith("prefect.flow-run."):
        trigger = EventTrigger(expect={one.event}, match_related=about, posture=Posture.Reactive, threshold=1)
    return AutomationCore(name=f"{prefix}{one.name}", trigger=trigger, actions=[one.action])


def _triggers(config: Config, distill_id: UUID) -> list[Reaction]:
    settings, mine = config.triggers, {"prefect.resource.id": resource(config.name)}
    plain = RunDeployment(source="selected", deployment_id=distill_id, parameters={}, job_variables={})
    found = []
    if settings.new_verified:
        name = f"distill when {settings.new_verified} verified trajectories are new"
        found.append(Reaction(name, f"flywheel.{READY}", mine, plain))
    if settings.slice_drop:
        name = f"distill when a slice drops by {settings.slice_drop:.0%}"
        found.append(Reaction(name, f"flywheel.{DROPPED}", mine, plain))
    if settings.dataset:
        about = {"prefect.resource.id": lake_resource(Lake.of(config, create=True)), "dataset": settings.dataset}
        title = {"__prefect_kind": "jinja", "template": TITLE}
        action = plain.model_copy(update={"parameters": {"dataset": title}})
        found.append(Reaction(f"distill dataset {settings.dataset}", f"flywheel.{TAGGED}", about, action))
    return found


def _notices(config: Config, client: SyncPrefectClient, turn_id: UUID, distill_id: UUID) -> list[Reaction]:
    if not config.notify.block:
        return []
    kind, _, name = config.notify.block.partition("/")
    try:
        block = client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        raise PrerequisiteError(
            f"there is no block {config.notify.block} on this Prefect server; see: prefect block ls"
        ) from None
    found = []
    for occasion in config.notify.on:
        event, text = MESSAGES[occasion]
        said = f"flywheel {config.name}: {text}"
        action: ActionTypes = SendNotification(block_document_id=block.id, subject=f"flywheel {config.name}", body=said)
        if kind == "webhook":
            payload = json.dumps({"flywheel": config.name, "occasion": occasion, "message": text})
            action = CallWebhook(block_document_id=block.id, payload=payload)
        if event.startswith("prefect."):
            for deployment in (turn_id, distill_id):
                about = {"prefect.resource.id": f"prefect.deployment.{deployment}"}
                found.append(Reaction(f"tell of {occasion} {str(deployment)[:8]}", event, about, action))
        else:
            found.append(Reaction(f"tell of {occasion}", event, {"prefect.resource.id": resource(config.name)}, action))
    return found
