"""Automations of a Prefect server: triggers of distillation, and notifications."""

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

from flywheel.config.flows import Occasion
from flywheel.config.root import Config
from flywheel.datasets.lake.url import parse_lake_url
from flywheel.errors import PrerequisiteError
from flywheel.flows.events import CROWNED, DROPPED, READY, SPENT, TAGGED, lake_resource, resource

RUN_ENDED_BADLY = ("prefect.flow-run.Failed", "prefect.flow-run.Crashed")
TITLE = "{{ event.payload['title'] }}"
MESSAGES: dict[Occasion, tuple[tuple[str, ...], str]] = {
    "failed": (RUN_ENDED_BADLY, "'a run failed: ' ~ flow_run.name ~ ': ' ~ flow_run.state.message"),
    "champion": (
        (f"flywheel.{CROWNED}",),
        "'new champion ' ~ event.payload['champion'] ~ ': ' ~ event.payload['decision']",
    ),
    "budget": ((f"flywheel.{SPENT}",), "event.payload['said']"),
    "drop": ((f"flywheel.{DROPPED}",), "event.payload['slice'] ~ ' fell to ' ~ event.payload['after']"),
}
"""Occasion → (events, the text of the notification as a Jinja expression)."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """One automation: on events about one of some resources, do something. `related`: the resource is beside theirs."""

    name: str
    events: tuple[str, ...]
    about: dict[str, list[str]]
    action: ActionTypes
    related: bool = False


def install(config: Config, turn_id: UUID, distill_id: UUID) -> list[str]:
    """Make the automations that the config asks for in place of those of before; their names."""
    with get_client(sync_client=True) as client:
        wanted = [*_triggers(config, distill_id), *_notices(config, client, turn_id, distill_id)]
        prefix = f"{resource(config.name)}: "
        for known in client.read_automations():
            if known.name.startswith(prefix):
                client.delete_automation(known.id)
        for reaction in wanted:
            client.create_automation(_automation(prefix, reaction))
    return [f"{prefix}{reaction.name}" for reaction in wanted]


def _automation(prefix: str, reaction: Reaction) -> AutomationCore:
    nothing, about = ResourceSpecification(root={}), ResourceSpecification(root=dict(reaction.about))
    trigger = EventTrigger(
        expect=set(reaction.events),
        match=nothing if reaction.related else about,
        match_related=about if reaction.related else nothing,
        posture=Posture.Reactive,
        threshold=1,
    )
    return AutomationCore(name=f"{prefix}{reaction.name}", trigger=trigger, actions=[reaction.action])


def _triggers(config: Config, distill_id: UUID) -> list[Reaction]:
    settings, mine = config.triggers, {"prefect.resource.id": [resource(config.name)]}
    plain = RunDeployment(source="selected", deployment_id=distill_id, parameters={}, job_variables={})
    automations = []
    if settings.new_verified:
        name = f"distill when {settings.new_verified} verified trajectories are new"
        automations.append(Reaction(name, (f"flywheel.{READY}",), mine, plain))
    if settings.slice_drop:
        name = f"distill when a slice drops by {settings.slice_drop:.0%}"
        automations.append(Reaction(name, (f"flywheel.{DROPPED}",), mine, plain))
    if settings.dataset:
        lake = lake_resource(parse_lake_url(config.lake.url or config.data_dir))
        about = {"prefect.resource.id": [lake], "dataset": [settings.dataset]}
        title = {"__prefect_kind": "jinja", "template": TITLE}
        action = plain.model_copy(update={"parameters": {"dataset": title}})
        automations.append(Reaction(f"distill dataset {settings.dataset}", (f"flywheel.{TAGGED}",), about, action))
    return automations


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
    automations = []
    for occasion in config.notify.on:
        events, text = MESSAGES[occasion]
        related = events == RUN_ENDED_BADLY
        about = (
            [f"prefect.deployment.{deployment_id}" for deployment_id in (turn_id, distill_id)]
            if related
            else [resource(config.name)]
        )
        action = _told(kind, block.id, config.name, occasion, text)
        automations.append(Reaction(f"tell of {occasion}", events, {"prefect.resource.id": about}, action, related))
    return automations


def _told(kind: str, block_id: UUID, name: str, occasion: Occasion, text: str) -> ActionTypes:
    """JSON for a web hook, plain words for any notification."""
    if kind == "webhook":
        fixed = json.dumps({"flywheel": name, "occasion": occasion})
        return CallWebhook(
            block_document_id=block_id, payload=f'{fixed[:-1]}, "message": {{{{ ({text}) | tojson }}}}}}'
        )
    body = f"flywheel {name}: {{{{ {text} }}}}"
    return SendNotification(block_document_id=block_id, subject=f"flywheel {name}", body=body)
