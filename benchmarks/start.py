"""Measures how long a run takes from its command to its first measured step: with nothing compiled yet, and again.

    python benchmarks/start.py [--pages sft,reward_model,dpo,ppo] [--rounds 3]

The pages read what they name by default: the rows and models of the quickstart, in runs/farm. Each start is a process
of its own that is ended when a step has its metrics, which come a step later. `again` is the median of the rounds, with
the programs that the first one compiled.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlhf_jax.evaluation.doctor.metric_rows import read_metric_rows  # noqa: E402

LONGEST_S = 600


def seconds_to_first_step(page: str, cache: Path) -> float:
    """Starts the page in an empty workdir and ends it when it has measured a step."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable,
            "-m",
            "rlhf_jax.main",
            f"--config=configs/{page}.py",
            f"--workdir={workdir}",
        ]
        env = os.environ | {"XDG_CACHE_HOME": str(cache)}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
        with (Path(workdir) / "terminal.txt").open("w+") as terminal:
            began = time.perf_counter()
            run = subprocess.Popen(
                [*command, "--config.log_every=1"],
                cwd=ROOT,
                env=env,
                stdout=terminal,
                stderr=subprocess.STDOUT,
            )
            metrics = Path(workdir) / "metrics.jsonl"
            # An evaluation before the first step has a line, too.
            while not (metrics.is_file() and any(row["step"] for row in read_metric_rows(metrics).rows)):
                if run.poll() is not None or time.perf_counter() - began > LONGEST_S:
                    run.kill()
                    terminal.seek(0)
                    sys.exit(f"{page}: no step after {time.perf_counter() - began:.0f} s:\n{terminal.read()}")
                time.sleep(0.02)
            seconds = time.perf_counter() - began
            run.kill()
            run.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pages", default="sft,reward_model,dpo,ppo")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| page | first, seconds | again |\n|---|--:|--:|")
    for page in args.pages.split(","):
        with tempfile.TemporaryDirectory() as cache:
            first = seconds_to_first_step(page, Path(cache))
            again = [seconds_to_first_step(page, Path(cache)) for _ in range(args.rounds)]
        print(f"| {page} | {first:.1f} | {statistics.median(again):.1f} |", flush=True)


if __name__ == "__main__":
    main()
