"""Measures how long a run takes from its command to its first measurements: with nothing compiled yet, and again.

    python benchmarks/start.py runs/farm [--pages sft,reward_model,dpo,ppo] [--rounds 3]

The folder is the workdir of a finished `configs/farm.py`, whose rows and models the pages read. Each start is a process
of its own that is ended when its first line of metrics is there, a step after the first one. `again` is the median of
the rounds, with the programs that the first one compiled.
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
LONGEST_S = 600


def inputs(page: str, farm: Path) -> list[str]:
    """The overrides by which a page reads the farm's rows and models."""
    sft, rewards = f"{farm}/sft/export", f"{farm}/reward_model/export"
    prompts = {"train": f"{farm}/data/unlabeled.parquet", "eval": f"{farm}/data/val.parquet"}
    fields = {
        "sft": {
            "data.train": f"{farm}/data/sft.parquet",
            "data.eval": prompts["eval"],
            "model.tokenizer": f"{farm}/data/tokenizer",
        },
        "reward_model": {
            "data.train": f"{farm}/labels/labels.parquet",
            "model.init": sft,
            "center_on": prompts["eval"],
        },
        "dpo": {"data.train": f"{farm}/labels/labels.parquet", "model.init": sft},
        "ppo": {
            "data.train": prompts["train"],
            "data.eval": prompts["eval"],
            "model.policy": sft,
            "model.reward": rewards,
        },
    }[page]
    return [f"--config.{name}={value}" for name, value in fields.items()]


def seconds_to_first_metrics(page: str, farm: Path, cache: Path) -> float:
    """Starts the page in an empty workdir and ends it when its metrics have a line."""
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
                [*command, "--config.log_every=1", *inputs(page, farm)],
                cwd=ROOT,
                env=env,
                stdout=terminal,
                stderr=subprocess.STDOUT,
            )
            metrics = Path(workdir) / "metrics.jsonl"
            while not (metrics.is_file() and metrics.stat().st_size):
                if run.poll() is not None or time.perf_counter() - began > LONGEST_S:
                    run.kill()
                    terminal.seek(0)
                    sys.exit(
                        f"{page}: no metrics after {time.perf_counter() - began:.0f} s:\n{terminal.read()}"
                    )
                time.sleep(0.02)
            seconds = time.perf_counter() - began
            run.kill()
            run.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("farm", type=Path)
    parser.add_argument("--pages", default="sft,reward_model,dpo,ppo")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| page | first, seconds | again |\n|---|--:|--:|")
    for page in args.pages.split(","):
        with tempfile.TemporaryDirectory() as cache:
            first = seconds_to_first_metrics(page, args.farm.resolve(), Path(cache))
            again = [
                seconds_to_first_metrics(page, args.farm.resolve(), Path(cache)) for _ in range(args.rounds)
            ]
        print(f"| {page} | {first:.1f} | {statistics.median(again):.1f} |", flush=True)


if __name__ == "__main__":
    main()
