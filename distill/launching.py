"""Starts the distill stage in processes of its own: under torchrun, where a config asks for several, and for students
that are trained side by side.

    python [-m torch.distributed.run …] -m flywheel.distill.launching ORDER

ORDER is a JSON file: settings, kind and iteration, and the process without which these ones end. The first process says
on a line of JSON how far it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flywheel.errors
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import Progress, distill
from flywheel.errors import FlywheelError, InfrastructureError
from flywheel.policies.card import PolicyCard, read_card
from flywheel.policies.registry import policy_directory
from flywheel.runtime.distributed import is_main
from flywheel.runtime.local_workers import available_cores
from flywheel.runtime.parent import PULSE, die_with_parent, end_without
from flywheel.runtime.subprocesses import child_environment, python_command


def distill_apart(
    config: Config,
    lake: Lake,
    kind: str,
    iteration: int,
    progress: Progress = lambda role, update, total, loss: None,
    *,
    condition: str = "",
    dataset: str = "",
) -> PolicyCard:
    """`distill`, in `train.processes` processes of this machine; the lake is where all of them see it.

    Raises `InfrastructureError` when a process died; what was checkpointed is resumed by the next try.
    """
    if config.train.processes == 1:
        return distill(config, lake, kind, iteration, progress, condition=condition, dataset=dataset)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.train.processes}"]
    threads = max(1, available_cores() // config.train.processes)
    what = {"kind": kind, "iteration": iteration, "condition": condition, "dataset": dataset}
    return _launched(config, lake, torchrun, threads, what, progress)


def distill_together(
    config: Config,
    lake: Lake,
    kinds: Sequence[str],
    iteration: int,
    progress: Progress = lambda role, update, total, loss: None,
) -> list[PolicyCard]:
    """`distill_apart` for students of several kinds; with `train.side_by_side` each in a process with its share of the
    cores, since threads make little of models this small."""
    if not config.train.side_by_side:
        return [distill_apart(config, lake, kind, iteration, progress) for kind in kinds]
    threads = max(1, available_cores() // len(kinds))
    orders = [{"kind": kind, "iteration": iteration, "condition": "", "dataset": ""} for kind in kinds]
    with ThreadPoolExecutor(len(kinds)) as waiting:
        cards = [waiting.submit(_launched, config, lake, [], threads, order, progress) for order in orders]
        return [card.result() for card in cards]


def _launched(
    config: Config, lake: Lake, launcher: list[str], threads: int, what: dict[str, object], progress: Progress
) -> PolicyCard:
    """The student that other processes distilled."""
    with tempfile.TemporaryDirectory() as folder:
        order, errors = Path(folder) / "order.json", Path(folder) / "errors"
        command = python_command(*launcher, "-m", "flywheel.distill.launching", str(order))
        with errors.open("wb") as log:
            process = subprocess.Popen(
                command,
                env=child_environment(OMP_NUM_THREADS=str(threads)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=die_with_parent,
            )
        aside = order.with_suffix(".new")
        parent = process.pid if launcher else os.getpid()
        aside.write_text(json.dumps({"config": config.model_dump(mode="json"), "parent": parent, **what}))
        aside.rename(order)
        name = ""
        try:
            assert process.stdout is not None
            for line in process.stdout:
                message = json.loads(line)
                if "policy_id" in message:
                    name = message["policy_id"]
                elif "error" in message:
                    raise getattr(flywheel.errors, message["kind"])(message["error"])
                else:
                    progress(message["role"], message["update"], message["total"], message["loss"])
            if process.wait() or not name:
                last = errors.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
                raise InfrastructureError(f"a process of training ended: {last[0]}")
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    return read_card(policy_directory(lake, name))


def main(order_file: str) -> None:
    """One of the processes. Those of torchrun end with it, which ends with the process that started it."""
    while not (path := Path(order_file)).exists():  # written once torchrun's process id is known
        if not path.parent.exists():
            os._exit(1)
        time.sleep(PULSE)
    order = json.loads(path.read_text())
    end_without(order["parent"])
    config = Config.model_validate(order["config"])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**message: object) -> None:
        if is_main():
            print(json.dumps(message), file=answers, flush=True)

    try:
        card = distill(
            config,
            Lake.of(config),
            order["kind"],
            order["iteration"],
            condition=order["condition"],
            dataset=order["dataset"],
            progress=lambda role, update, total, loss: say(role=role, update=update, total=total, loss=loss),
        )
    except FlywheelError as problem:
        say(error=str(problem), kind=type(problem).__name__)
        answers.flush()
        os._exit(2)
    say(policy_id=card.policy_id)
    os._exit(0)  # gloo's threads may abort the interpreter's own end


if __name__ == "__main__":
    main(sys.argv[1])
