"""What each objective makes of a role's rows: the examples of an epoch, and the loss that they are learned under."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from flywheel.agents.prompts import PAD, Role
from flywheel.agents.tokens import PieceTokenizer, token_id
from flywheel.config import Config, RefineConfig
from flywheel.datasets.lake import Lake
from flywheel.distill.corpus import Corpus
from flywheel.distill.critics import ValueHead
from flywheel.distill.examples import Example, example
from flywheel.distill.models import load_part
from flywheel.distill.objectives.cloning import cloning
from flywheel.distill.objectives.imitation import imitation
from flywheel.distill.objectives.preference import preference
from flywheel.distill.pairs import Pair, pair_rows
from flywheel.distill.registry import policy_directory
from flywheel.distill.rows import Rows
from flywheel.distill.students import PolicyCard, on_device
from flywheel.distill.teachings import stored, teach, with_teachings
from flywheel.distill.train import Objective, pick_device
from flywheel.distill.weighing import credited


@dataclass(frozen=True, slots=True)
class Lesson:
    """`rows`: (rows, tokens, epoch) → its examples. `head`: the critic behind their weights, kept with the model."""

    rows: Callable[[Rows, PieceTokenizer, int], list[Example]]
    objective: Objective = cloning
    head: ValueHead | None = None


def cloned(role: Role) -> Lesson:
    """Every target of every row alike."""
    return Lesson(lambda rows, tokens, number: rows.epoch(tokens, number))


def lessons(
    config: Config,
    settings: RefineConfig,
    lake: Lake,
    corpus: Corpus,
    roles: Sequence[Role],
    student: PolicyCard,
    teacher: str,
    pairs: Sequence[Pair],
    iteration: int,
) -> Callable[[Role], Lesson]:
    """The second phase of a cloned student, by role."""
    base = policy_directory(lake, student.policy_id)
    if settings.objective == "regression":
        credit = credited(config, settings, lake, corpus, roles, base, iteration)
        return lambda role: Lesson(
            lambda rows, tokens, number: rows.epoch(tokens, number, credit.weigh(role)), head=credit.heads[role]
        )
    if settings.objective == "imitation":
        ask = partial(_taught, config, settings, lake, teacher)
        objective = partial(imitation, reverse=settings.reverse)
        return lambda role: Lesson(partial(ask, role), objective)
    if settings.objective == "preference":
        compared = pair_rows(config, lake, pairs, base)
        return lambda role: Lesson(compared, partial(preference, beta=settings.beta))
    return cloned


def _taught(
    config: Config,
    settings: RefineConfig,
    lake: Lake,
    teacher: str,
    role: Role,
    rows: Rows,
    tokens: PieceTokenizer,
    number: int,
) -> list[Example]:
    """The rows of an epoch with the teacher's top tokens, which the lake holds or the teacher is asked for."""
    drawn = rows.drawn(number)
    examples = [example(pieces, tokens) for _, pieces in drawn]
    draw = rows.digest
    known = stored(lake, teacher, role, draw, number, settings.top_k)
    if len(known) < len(examples):
        model, tokenizer = load_part(policy_directory(lake, teacher) / role)
        model = on_device(model, pick_device(config.train.device))
        owners, pad = [one for one, _ in drawn], token_id(tokenizer, PAD)
        size = config.train.batch_tokens
        teach(lake, model, teacher, role, draw, number, owners, examples, settings.top_k, size, pad)
        known = stored(lake, teacher, role, draw, number, settings.top_k)
    return [with_teachings(one, *known[place], settings.top_k) for place, one in enumerate(examples)]
