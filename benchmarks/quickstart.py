"""Time and peak memory of a whole quickstart in a fresh data directory, JSON on stdout.

Memory is the largest sum of resident sets over the process and all its descendants (the Prefect server, the JVM),
sampled twice a second.  python benchmarks/quickstart.py [CONFIG]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLYWHEEL = str(Path(sys.executable).parent / "flywheel")


def resident_bytes(root: int) -> int:
    """Resident set of a process and its descendants, from /proc."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
        except OSError:
            continue
        parents[int(entry.name)] = int(status["PPid"])
        sizes[int(entry.name)] = int(status.get("VmRSS", "0 kB").split()[0]) << 10
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(sizes.get(pid, 0) for pid in family)


def main() -> None:
    config = sys.argv[1] if len(sys.argv) > 1 else "configs/quickstart.toml"
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [FLYWHEEL, "run", config, "--json", "--set", f"data_dir={folder}/data"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(0.5)
        assert process.stdout is not None
        reports = json.loads(process.stdout.read())
        wall = time.perf_counter() - began
    print(
        json.dumps(
            {
                "seconds": round(wall, 1),
                "peak_GiB": round(peak / (1 << 30), 2),
                "iterations": len(reports),
                "rates": [
                    {key: rate[key] for key in ("iteration", "policy", "rate", "low", "high")}
                    for report in reports
                    for rate in report["rates"]
                ],
                "gates": [
                    f"{gate['challenger']}: {gate['sentence']}" for report in reports for gate in report["gates"]
                ],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
