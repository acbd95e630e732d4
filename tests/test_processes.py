"""Several processes: two of torchrun's on gloo train the model that one would, with every parameter really spread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.filters.curate import curate
from flywheel.trajectory import Trajectory

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"
TRAINER = textwrap.dedent("""
    import json, os, sys
    from pathlib import Path
    import numpy as np
    from torch.distributed.tensor import DTensor
    from flywheel.config.student import StudentConfig
    from flywheel.config.train import TrainConfig
    from flywheel.distill.training.checkpoints import whole_weights
    from flywheel.distill.algorithms.bc import bc_loss
    from flywheel.distill.batching.examples import Example
    from flywheel.policies.models import new_model
    from flywheel.runtime.distributed import barrier, is_main, process_group, rank
    from flywheel.policies.tokenizer import train_tokenizer
    from flywheel.distill.training.loop import train
    from safetensors.torch import save_file

    parallelism, folder, stop = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    settings = TrainConfig(batch_tokens=128, accumulate=3, parallelism=parallelism, checkpoint_seconds=1e-9)
    chance = np.random.default_rng(0)
    rows = [
        Example(chance.integers(12, 260, n).astype(np.int32), (np.arange(n) % 3 == 1).astype(np.float32))
        for n in chance.integers(4, 40, 60).tolist()
    ]

    def progress(update, total, loss):
        if update == stop:
            raise KeyboardInterrupt

    def work():
        model = new_model(StudentConfig(hidden=32, layers=2, heads=2), train_tokenizer(["a b."], [], 300), 0)
        told = train(model, [rows] * 4, settings, seed=1, pad=0, checkpoint=folder / "checkpoint", loss_fn=bc_loss,
                     validation=rows[:7], progress=progress)
        local = {
            name: (one.to_local().numel() if isinstance(one, DTensor) else one.numel(), one.numel())
            for name, one in model.named_parameters()
        }
        Path(folder / f"local-{rank()}.json").write_text(json.dumps(local))
        weights = whole_weights(model)
        if is_main():
            save_file({name: one.contiguous() for name, one in weights.items()}, folder / "weights.safetensors")
            Path(folder / "told.json").write_text(json.dumps(told))
        barrier()

    with process_group("cpu"):
        work()
    os._exit(0)  # as flywheel does: the interpreter's end is not what is tested
""")

pytestmark = pytest.mark.slow


def torchrun(processes: int, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in so many processes, each with one thread."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*launcher, *command],
        check=check,
        text=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _train(processes: int, parallelism: str, folder: Path, stop: int = -1) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(TRAINER)
    done = torchrun(processes, str(script), parallelism, str(folder), str(stop), check=False)
    if stop >= 0:
        assert done.returncode != 0
        return {}
    assert done.returncode == 0, done.stderr
    weights: dict[str, torch.Tensor] = load_file(folder / "weights.safetensors")
    return weights


@pytest.mark.parametrize("parallelism", ["replicated", "sharded"])
def test_two_processes_train_the_model_of_one(tmp_path: Path, parallelism: str) -> None:
    alone, both = (_train(count, parallelism, tmp_path / str(count)) for count in (1, 2))
    for name, one in alone.items():
        torch.testing.assert_close(one, both[name], atol=2e-5, rtol=1e-4)
    one, two = (json.loads((tmp_path / str(count) / "told.json").read_text()) for count in (1, 2))
    for metric in ("first_loss", "last_loss", "validation_loss", "updates", "tokens"):
        assert one[metric] == pytest.approx(two[metric], rel=1e-4)
    parts = [json.loads((tmp_path / "2" / f"local-{rank}.json").read_text()) for rank in range(2)]
    for name, (local, whole) in parts[0].items():
        if parallelism == "sharded":
            assert local + parts[1][name][0] == whole
            assert local <= whole // 2 + whole // 16, name
        else:
            assert local == whole


@pytest.mark.parametrize("parallelism", ["replicated", "sharded"])
def test_two_processes_resume_to_the_same_weights(tmp_path: Path, parallelism: str) -> None:
    whole = _train(2, parallelism, tmp_path / "whole")
    _train(2, parallelism, tmp_path / "halves", stop=5)
    assert (tmp_path / "halves" / "checkpoint" / "state.safetensors").is_file()
    resumed = _train(2, parallelism, tmp_path / "halves")
    for name, one in whole.items():
        torch.testing.assert_close(one, resumed[name], atol=1e-6, rtol=1e-5)


def test_a_student_is_distilled_by_two_processes_of_the_command_line(
    smoke: Config, lake: Lake, golden: list[Trajectory], noisy: list[Trajectory]
) -> None:
    """The same student, by name and nearly to the bit; one process speaks and writes."""
    lake.append([*golden, *noisy], "episodes")
    curate(smoke, lake)
    sets = ["--set", f"data_dir={lake.root}", "--set", "train.parallelism=sharded", "--json"]
    done = torchrun(2, "-m", "flywheel", "distill", str(SMOKE), "--kind", "hierarchical", *sets)
    told = json.loads(done.stdout)
    folder = lake.root / "policies" / told["policy_id"]
    shared = {role: load_file(folder / role / "model.safetensors") for role in ("planner", "executor")}
    assert not [path for path in folder.iterdir() if path.suffix in (".checkpoint", ".start")]
    folder.rename(folder.with_suffix(".shared"))
    alone = distill(load(SMOKE, [f"data_dir={lake.root}"]), lake, "hierarchical", 1)
    assert alone.policy_id == told["policy_id"]
    for role, weights in shared.items():
        for name, one in load_file(folder / role / "model.safetensors").items():
            torch.testing.assert_close(one, weights[name], atol=1e-3, rtol=1e-3)
