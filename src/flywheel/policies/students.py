"""Students in memory: small transformers language models, one a role, loaded from a policy's directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from flywheel.agents.contexts.prompts import Role
from flywheel.agents.inference.language_model import LanguageModel, LocalLanguageModel
from flywheel.agents.policy import Policy
from flywheel.agents.student import FlatAgent, HierarchicalAgent
from flywheel.policies.card import ROLES, PolicyCard, acting_version, read_card
from flywheel.policies.models import load_part


def load_policy(directory: Path, device: str = "cpu", *, temperature: float = 0.0) -> Policy:
    """A student ready to act, by its card, or, with a temperature, sampling what it does."""
    card = read_card(directory)
    if temperature:
        card = replace(card, decoding=replace(card.decoding, temperature=temperature))
    language_models: dict[Role, LanguageModel] = {}
    for role in ROLES[card.kind]:
        model, tokenizer = load_part(directory / role)
        language_models[role] = LocalLanguageModel(on_device(model, device), tokenizer, card.decoding)
    return agent_of(card, language_models)


def agent_of(card: PolicyCard, language_models: Mapping[Role, LanguageModel]) -> FlatAgent | HierarchicalAgent:
    """The agent of a card, whose models run here or behind a server; its version says how it acts now."""
    version = acting_version(card.limits, card.decoding)
    if card.kind == "flat":
        return FlatAgent(card.kind, card.policy_id, version, language_models[Role.FLAT], card.limits, card.decoding)
    return HierarchicalAgent(
        card.kind,
        card.policy_id,
        version,
        language_models[Role.PLANNER],
        language_models[Role.EXECUTOR],
        card.limits,
        card.decoding,
    )


def on_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    torch.nn.Module.to(model, torch.device(device))
    return model
