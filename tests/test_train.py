"""Training: loss falls, a killed run resumes to the same weights, students load with plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from flywheel.agents.contexts.language import MarkerLanguage
from flywheel.agents.contexts.prompts import PAD, Role
from flywheel.agents.contexts.tokenization import token_id
from flywheel.config.root import Config, load
from flywheel.config.student import StudentConfig
from flywheel.config.train import TrainConfig
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.algorithms.bc import bc_loss
from flywheel.distill.batching.examples import Example, example, windows_of
from flywheel.distill.data.corpus import load_corpus
from flywheel.distill.data.rows import rows_of
from flywheel.distill.stage import distill
from flywheel.distill.training.loop import _plan, mean_loss, train
from flywheel.errors import FlywheelError, PolicyError, TrainingError
from flywheel.filters.curate import curate
from flywheel.filters.segments import segment
from flywheel.policies.card import limits_of
from flywheel.policies.models import new_model
from flywheel.policies.students import load_policy
from flywheel.policies.tokenizer import named_things, train_tokenizer
from flywheel.trajectory import Trajectory

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"
TINY = StudentConfig(hidden=32, layers=1, heads=2, vocabulary=600)
SETTINGS = TrainConfig(learning_rate=5e-3, batch_tokens=512, checkpoint_seconds=1e-9)


@pytest.fixture(scope="module")
def data(golden: list[Trajectory]) -> tuple[list[Example], PreTrainedTokenizerBase]:
    windows = [
        w for trajectory in golden for w in windows_of(trajectory, segment(trajectory), limits_of(TINY), Role.FLAT)
    ]
    texts = [piece.spelling for window in windows for piece in window.pieces]
    tokenizer = train_tokenizer(
        texts, named_things(step.action for trajectory in golden for step in trajectory.steps), 600
    )
    tokens = MarkerLanguage(tokenizer)
    return [example(window.pieces, tokens) for window in windows], tokenizer


def _train(
    data: tuple[list[Example], PreTrainedTokenizerBase], folder: Path, *, dropout: float = 0.0, **options: object
) -> PreTrainedModel:
    examples, tokenizer = data
    model = new_model(TINY, tokenizer, 0)
    model.config.attention_dropout = dropout
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    pad = token_id(tokenizer, PAD)
    train(model, [examples] * 6, SETTINGS, seed=1, pad=pad, checkpoint=folder, loss_fn=bc_loss, **options)  # type: ignore[arg-type]
    return model


def test_the_loss_falls(data: tuple[list[Example], PreTrainedTokenizerBase], tmp_path: Path) -> None:
    losses: list[float] = []
    _train(data, tmp_path, progress=lambda update, total, loss: losses.append(loss))
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_stopped_run_resumes_to_the_same_weights(
    data: tuple[list[Example], PreTrainedTokenizerBase], tmp_path: Path, dropout: float
) -> None:
    class StopError(Exception):
        pass

    def stop_at_seven(update: int, total: int, loss: float) -> None:
        if update == 7:
            raise StopError

    whole = _train(data, tmp_path / "whole", dropout=dropout)
    with pytest.raises(StopError):
        _train(data, tmp_path / "halves", dropout=dropout, progress=stop_at_seven)
    updates: list[int] = []
    resumed = _train(
        data, tmp_path / "halves", dropout=dropout, progress=lambda update, total, loss: updates.append(update)
    )
    assert updates[0] > 1
    for parameter, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_training_stops_where_held_out_tasks_gain_no_more_and_resumes_to_the_same_weights(
    data: tuple[list[Example], PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    """Rows with other tokens cannot become likelier for long."""
    examples, tokenizer = data
    chance = np.random.default_rng(0)
    strange = [Example(chance.permutation(one.ids_T).astype(np.int32), one.weight_T) for one in examples[:4]]

    def run(folder: Path, stop: int = -1) -> tuple[PreTrainedModel, dict[str, float]]:
        def interrupt(update: int, total: int, loss: float) -> None:
            if update == stop:
                raise KeyboardInterrupt

        model = new_model(TINY, tokenizer, 0)
        pad = token_id(tokenizer, PAD)
        told = train(
            model,
            [examples] * 12,
            SETTINGS,
            seed=1,
            pad=pad,
            checkpoint=folder,
            loss_fn=bc_loss,
            validation=strange,
            progress=interrupt,
        )
        return model, told

    whole, told = run(tmp_path / "whole")
    everything = len(list(_plan([examples] * 12, SETTINGS.batch_tokens, 1)))
    assert told["updates"] < everything
    assert told["validation_loss"] == pytest.approx(
        mean_loss(whole, strange, SETTINGS.batch_tokens, token_id(tokenizer, PAD))
    )
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "halves", stop=int(told["updates"]) - 1)
    resumed, again = run(tmp_path / "halves")
    assert again["updates"] == told["updates"]
    for parameter, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_held_out_tasks_are_whole_and_teach_nothing(
    smoke: Config, lake: Lake, golden: list[Trajectory], noisy: list[Trajectory]
) -> None:
    lake.append([*golden, *noisy], "episodes")
    curate(smoke, lake)
    rows = rows_of(smoke, load_corpus(smoke, lake, 1), Role.EXECUTOR, 1)
    learned, held = rows.apart(0.4)
    assert held.ids and learned.ids
    assert {*learned.ids, *held.ids} == set(rows.ids)
    tasks = rows.corpus.tasks
    assert not {tasks[trajectory_id] for trajectory_id in learned.ids} & {
        tasks[trajectory_id] for trajectory_id in held.ids
    }
    card = distill(load(SMOKE, [f"data_dir={lake.root}", "train.validation_share=0.4"]), lake, "flat", 1)
    assert card.metrics["flat_validation_loss"] > 0


def test_a_student_is_distilled_once_and_each_part_loads_with_plain_transformers(
    smoke: Config, lake: Lake, golden: list[Trajectory], noisy: list[Trajectory]
) -> None:
    lake.append([*golden, *noisy], "episodes")
    curate(smoke, lake)
    card = distill(smoke, lake, "hierarchical", 1)
    folder = lake.root / "policies" / card.policy_id
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert distill(smoke, lake, "hierarchical", 1) == card
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    for role in ("planner", "executor"):
        model = AutoModelForCausalLM.from_pretrained(folder / role)
        tokenizer = AutoTokenizer.from_pretrained(folder / role)
        ids = tokenizer("take carrot", return_tensors="pt")["input_ids"]
        assert model(ids).logits.isfinite().all()
        assert card.training_digest in (folder / role / "README.md").read_text()
    assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.pt")) + list(folder.rglob("*.checkpoint"))
    lineage = lake.sql(f"select count(*) as n from lineage where policy_id = '{card.policy_id}'").to_pylist()
    assert lineage == [{"n": card.trajectories}]


def test_only_a_hierarchy_needs_segments(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "episodes")
    curate(smoke, lake)
    settings = load(SMOKE, [f"data_dir={lake.root}", "train.segments=changes/1"])
    assert distill(settings, lake, "flat", 1).trajectories == len(golden)
    with pytest.raises(TrainingError, match=r"have no segments of changes/1, .* run: flywheel segment changes"):
        distill(settings, lake, "hierarchical", 1)


def test_a_tokenizer_from_before_is_told(data: tuple[list[Example], PreTrainedTokenizerBase]) -> None:
    with pytest.raises(PolicyError, match="tokenizer does not know"):
        token_id(data[1], "<|of yore|>")


def test_nothing_verified_broken_students_and_other_wordings_are_told(
    smoke: Config, lake: Lake, golden: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FlywheelError, match="no verified training trajectory"):
        distill(smoke, lake, "flat", 1)
    with pytest.raises(PolicyError, match="no finished student"):
        load_policy(tmp_path)
    lake.append(golden, "episodes")
    curate(smoke, lake)
    card = distill(smoke, lake, "flat", 1)
    folder = lake.root / "policies" / card.policy_id
    assert load_policy(folder).version == card.version
    with monkeypatch.context() as reworded:
        reworded.setattr("flywheel.policies.card.WORDING", 10**6)
        reworded.setattr("flywheel.distill.stage.WORDING", 10**6)
        assert load_policy(folder).version != card.version
        assert distill(smoke, lake, "flat", 1).policy_id != card.policy_id
    (folder / "flat" / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(PolicyError, match="does not load") as caught:
        load_policy(folder)
    assert "\n" not in str(caught.value)
