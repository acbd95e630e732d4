"""Students on disk and in memory: small transformers language models, one a role, beside one `policy.json`.

A policy directory holds one plain Hugging Face folder a role (safetensors, tokenizer, model card), so that
`AutoModelForCausalLM.from_pretrained` loads each part by itself. `policy.json` is written last: without it the
directory is unfinished work.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

from flywheel.agents.context import Limits
from flywheel.agents.policy import Policy
from flywheel.agents.prompts import END, PAD, Role
from flywheel.agents.student import Decoding, FlatAgent, HierarchicalAgent, Speaker
from flywheel.agents.tokens import token_id
from flywheel.config import StudentConfig
from flywheel.errors import PolicyError
from flywheel.trajectory import digest

POLICY_FILE = "policy.json"
ROLES: dict[str, tuple[Role, ...]] = {"flat": (Role.FLAT,), "hierarchical": (Role.PLANNER, Role.EXECUTOR)}
"""Kinds of student and the models that each is made of."""


@dataclass(frozen=True, slots=True)
class PolicyCard:
    """What `policy.json` says: which student, how it acts, and where it comes from."""

    kind: str
    policy_id: str
    version: str
    limits: Limits
    decoding: Decoding
    iteration: int
    snapshot: int
    condition: str
    """The SQL that chose the trajectories, or empty where the iteration did."""
    trajectories: int
    training_digest: str
    config_digest: str
    parent_policy_id: str
    parameters: int
    metrics: dict[str, float]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> PolicyCard:
        raw: dict[str, Any] = json.loads(text)
        return PolicyCard(**{**raw, "limits": Limits(**raw["limits"]), "decoding": Decoding(**raw["decoding"])})


def limits_of(config: StudentConfig) -> Limits:
    return Limits(config.window_steps, config.planner_window, config.segment_steps)


def decoding_of(config: StudentConfig, seed: int) -> Decoding:
    return Decoding(max_repeats=config.max_repeats, seed=seed)


def acting_version(limits: Limits, decoding: Decoding) -> str:
    """How a policy acts is part of what it is: other limits or decoding make another version."""
    return digest(asdict(limits), asdict(decoding), size=4)


def new_model(config: StudentConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Qwen3-shaped model from scratch in fp32. Weights are a function of the seed.

    Normalised queries and keys (Qwen3, arXiv 2505.09388) and an initial spread of width^-1/2 let so small a model
    learn to copy names out of its context early in training.
    """
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=3 * config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.hidden // config.heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=config.hidden**-0.5,
            pad_token_id=token_id(tokenizer, PAD),
            bos_token_id=None,
            eos_token_id=token_id(tokenizer, END),
        )
    )


def save_part(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """One role's model as a Hugging Face folder."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def load_part(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A role's model and tokenizer. Raises `PolicyError` in one line."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers, safetensors and json raise families of their own for a broken folder
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PolicyError(
            f"student {directory} does not load ({reason}); delete its folder and distill it again"
        ) from error
    return model, tokenizer


def read_card(directory: Path) -> PolicyCard:
    path = directory / POLICY_FILE
    try:
        return PolicyCard.from_json(path.read_text())
    except FileNotFoundError:
        raise PolicyError(f"no finished student in {directory}; run `flywheel distill` again") from None
    except (ValueError, TypeError, KeyError) as error:
        raise PolicyError(f"{path} is not a policy card ({error}); delete its folder and distill it again") from error


def load_policy(directory: Path, device: str = "cpu") -> Policy:
    """A student ready to act."""
    card = read_card(directory)
    speakers = {}
    for role in ROLES[card.kind]:
        model, tokenizer = load_part(directory / role)
        speakers[role] = Speaker(on_device(model, device), tokenizer, card.decoding)
    if card.kind == "flat":
        return FlatAgent(card.kind, card.policy_id, card.version, speakers[Role.FLAT], card.limits, card.decoding)
    return HierarchicalAgent(
        card.kind,
        card.policy_id,
        card.version,
        speakers[Role.PLANNER],
        speakers[Role.EXECUTOR],
        card.limits,
        card.decoding,
    )


def on_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    torch.nn.Module.to(model, torch.device(device))
    return model


def finish(directory: Path, card: PolicyCard) -> None:
    """Mark the policy complete, atomically, and drop what only training needed."""
    for checkpoint in directory.glob("*.checkpoint"):
        shutil.rmtree(checkpoint)
    temporary = directory / f"{POLICY_FILE}.new"
    temporary.write_text(card.to_json())
    temporary.replace(directory / POLICY_FILE)
