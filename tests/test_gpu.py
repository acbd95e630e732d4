"""On a GPU as on a CPU: packed rows and masks, training in bfloat16, adapters, sharding, decoding with a cache."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from flywheel.agents.policy import Turn
from flywheel.config.student import StudentConfig
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import Example
from flywheel.distill.batching.packing import batches, target_logits
from flywheel.distill.stage import distill
from flywheel.environments.catalog import open_configured
from flywheel.filters.curate import curate
from flywheel.gateway.agents import agent_tasks
from flywheel.policies.models import untrained
from flywheel.policies.registry import policy_directory
from flywheel.policies.students import load_policy, on_device
from flywheel.trajectory import Split
from tests.door_agent import config_of, task_rows
from tests.instruct_base import save_base
from tests.test_agent_world import played
from tests.test_processes import torchrun

ROOT = Path(__file__).parents[1]
DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch knows as CUDA"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "door_agent", raising=False)


def test_packed_rows_lose_what_they_lose_on_a_cpu() -> None:
    chance = np.random.default_rng(0)
    rows = [
        Example(chance.integers(12, 300, n).astype(np.int32), (np.arange(n) % 3 == 1).astype(np.float32))
        for n in chance.integers(4, 60, 40).tolist()
    ]

    def losses(device: str) -> torch.Tensor:
        model = on_device(untrained(StudentConfig(hidden=64, layers=2), 300, 0), device)
        with torch.no_grad():
            parts = [
                cross_entropy(target_logits(model, batch), batch.targets.next_N, reduction="none")
                for batch in batches(model, rows, 256, 0)
            ]
        return torch.cat(parts).cpu()

    torch.testing.assert_close(losses(DEVICE), losses("cpu"), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("base", [False, True], ids=["from scratch", "adapter on a chat model"])
def test_a_student_learns_in_bfloat16_and_plays_as_on_a_cpu(tmp_path: Path, base: bool) -> None:
    student = {"base": str(save_base(tmp_path / "base")), "lora_rank": 8} if base else {}
    train = {"device": DEVICE, "epochs": {"planner": 1, "executor": 1, "flat": 20}}
    config = config_of(tmp_path, task_rows(16), train=train, student=student)
    with Lake.of(config, create=True) as lake:
        lake.append(played(config, agent_tasks(config, Split.TRAIN, 0, 12)), "collect")
        curate(config, lake)
        card = distill(config, lake, "flat", 1)
        assert card.metrics["flat_last_loss"] < 0.95 * card.metrics["flat_first_loss"]
        folder = policy_directory(lake, card.policy_id)
        with open_configured(config) as world:
            environment = world.environments(1)[0]
            tasks = agent_tasks(config, Split.DEV, 0, 4)
            seen = [environment.reset(task) for task in tasks]
        actions = {}
        for device in ("cpu", DEVICE):
            policy = load_policy(folder, device)
            for slot, task in enumerate(tasks):
                policy.begin(slot, task, 0)
            actions[device] = [decision.action for decision in policy.act(list(map(Turn, range(len(seen)), seen)))]
    assert actions["cpu"] == actions[DEVICE]


def test_a_sharded_model_is_trained_by_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 under NCCL, with as many processes as there are GPUs, on a lake that this test fills."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = config_of(tmp_path, task_rows(16))
    with Lake.of(config, create=True) as lake:
        lake.append(played(config, agent_tasks(config, Split.TRAIN, 0, 12)), "collect")
        curate(config, lake)
    epochs = {"planner": 1, "executor": 1, "flat": 4}
    train = {"device": DEVICE, "parallelism": "sharded", "epochs": epochs}
    (tmp_path / "sharded.py").write_text(
        "from flywheel.datasets.lake.lake import Lake\n"
        "from flywheel.distill.stage import distill\n"
        "from tests.door_agent import config_of, task_rows\n"
        "from pathlib import Path\n"
        f"config = config_of(Path.cwd(), task_rows(16), train={train})\n"
        "card = distill(config, Lake.of(config), 'flat', 1)\n"
        "print('LOSSES', card.metrics['flat_first_loss'], card.metrics['flat_last_loss'])\n"
    )
    done = torchrun(max(1, torch.cuda.device_count()), "sharded.py")
    _, first, last = next(line for line in done.stdout.splitlines() if line.startswith("LOSSES")).split()
    assert float(last) < float(first)
