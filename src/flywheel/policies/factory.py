"""Policies by what people call them: teachers, models behind servers, the champion, or any registered student."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel.agents.chat import ChatPolicy, ServedPolicy
from flywheel.agents.contexts.prompts import Role
from flywheel.agents.human import Human
from flywheel.agents.inference.endpoint import Server
from flywheel.agents.inference.language_model import LanguageModel
from flywheel.agents.inference.remote import RemoteLanguageModel
from flywheel.agents.mixture import Coin, Escalation, Mixture, Rule, Stretch
from flywheel.agents.policy import Policy
from flywheel.agents.scripted import Expert, LiveExpert, Mistakes, RandomPolicy
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.capabilities import advises
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError, PolicyError
from flywheel.policies.card import ROLES, read_card
from flywheel.policies.models import load_tokenizer
from flywheel.policies.registry import RANDOM, champion, policy_directory, registered
from flywheel.policies.students import agent_of, load_policy
from flywheel.runtime.devices import pick_device

EXPERT, NOISY_EXPERT, CHAMPION_NAME, TUTORED = "expert", "noisy_expert", "champion", "tutored"
CHAT, SERVED, REMOTE, HUMAN = "chat", "served", "remote", "human"
NAMES = (EXPERT, NOISY_EXPERT, RANDOM, CHAMPION_NAME, TUTORED, CHAT, SERVED, REMOTE, HUMAN)


def make_policy(config: Config, lake: Lake, world: World, name: str, champion_id: str = "") -> Policy:
    """A policy by one of `NAMES`, or by its id (or the unambiguous beginning of one).

    `tutored`: the champion, watched by a teacher. `remote`: the champion, its models on other servers. `champion_id`:
    the champion of the time, where it is not today's.
    """
    if name == CHAMPION_NAME:
        name = champion_id or champion(lake)
    if name in (EXPERT, NOISY_EXPERT):
        mistakes = Mistakes(**config.collect.mistakes.model_dump()) if name == NOISY_EXPERT else None
        if advises(world):
            return LiveExpert(mistakes, seed=config.seed)
        return Expert(world, mistakes, seed=config.seed)
    if name == RANDOM:
        return RandomPolicy(seed=config.seed, max_repeats=config.student.max_repeats)
    if name == CHAT:
        if problem := config.unpriced(CHAT, config.chat):
            raise ConfigError(problem)
        return ChatPolicy(config.chat)
    if name == SERVED:
        return ServedPolicy(config.served)
    if name == HUMAN:
        return Human()
    if name == REMOTE:
        return _remote(config, lake, champion_id or champion(lake))
    if name == TUTORED:
        if config.collect.mixing.teacher == TUTORED:
            raise PolicyError("collect.mixing.teacher must be a teacher, not tutored itself")
        student = make_policy(config, lake, world, CHAMPION_NAME, champion_id)
        teacher = make_policy(config, lake, world, config.collect.mixing.teacher, champion_id)
        return Mixture(student, teacher, _rule(config), seed=config.seed)
    row = registered(lake, name)
    return load_policy(policy_directory(lake, str(row.policy_id)), pick_device(config.train.device))


def _rule(config: Config) -> Rule:
    mixing = config.collect.mixing
    rules: Mapping[str, Rule] = {
        "stretch": Stretch(max(1, config.environment.max_steps // 3)),
        "coin": Coin(mixing.beta),
        "escalation": Escalation(mixing.failures, mixing.steps),
    }
    return rules[mixing.rule]


def _remote(config: Config, lake: Lake, policy_id: str) -> Policy:
    """A registered student whose models answer from servers; contexts and memory stay here."""
    folder = policy_directory(lake, str(registered(lake, policy_id).policy_id))
    card, settings = read_card(folder), config.remote
    urls = {Role.PLANNER: settings.planner, Role.EXECUTOR: settings.executor, Role.FLAT: settings.flat}
    language_models: dict[Role, LanguageModel] = {}
    for role in ROLES[card.kind]:
        server = Server(f"{role}'s server", urls[role], f"{card.policy_id}/{role}", settings.key, settings.timeout)
        tokenizer = load_tokenizer(folder / role)
        language_models[role] = RemoteLanguageModel(server, tokenizer, card.decoding, retries=settings.retries)
    return agent_of(card, language_models)
