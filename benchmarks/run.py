"""Measures rlhf_jax beside its peers, in turns, on the same weights and tokens.

    bash benchmarks/setup_peers.sh && python benchmarks/run.py      # everything at `small`
    python benchmarks/run.py --tasks sft,dpo --sizes tiny,small --contestants ours,lean --ragged --repetitions 5

Every contestant is a process of its own and does one repetition when it is its turn, so that whatever else the
machine does hits all of them alike. Their output goes to benchmarks/results/*.log, the numbers to results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "contestants"), str(HERE.parent)]

import folders  # noqa: E402
import report  # noqa: E402
from session import Job  # noqa: E402
from setting import SIZES, TASKS  # noqa: E402

from rlhf_jax.allocator import tunables  # noqa: E402

TORCH, TUNIX = (HERE / ".peers" / name / "bin" / "python" for name in ("torch", "tunix"))

# name -> (module below contestants/, interpreter, tasks)
CONTESTANTS = {
    "ours": ("ours", Path(sys.executable), TASKS),
    "lean": ("lean", TORCH, TASKS),
    "trl": ("trl_trainers", TORCH, ("sft", "reward_model", "dpo", "ppo")),
    "trl_free": ("trl_free", TORCH, ("sft",)),
    "tunix": ("tunix_trainers", TUNIX, TASKS),
    "transformers": ("hf_generate", TORCH, ("generate",)),
}
YARDSTICK = ("matrix_product", Path(sys.executable))


class Worker:
    """One contestant's process."""

    def __init__(
        self, name: str, module: str, python: Path, job: Path, log: Path, *, own_malloc: bool
    ) -> None:
        self.name, self.failed, self.notes = name, "", []
        self.peak_bytes = 0
        self._log = log
        self._process = subprocess.Popen(
            [str(python), str(HERE / "contestants" / "session.py"), module, str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=environment(own_malloc or name in ("ours", "yardstick")),
            cwd=HERE,
        )
        self._hear()

    def turn(self) -> None:
        """One repetition. Outside of it the process is stopped: idle threads of a runtime may still poll."""
        if not self.failed:
            self._process.send_signal(signal.SIGCONT)
            self._tell("go")
            found = self._hear()
            if found:
                self.notes.append(found)
            self._process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        if not self.failed:
            self._tell("stop")
            self.peak_bytes = (self._hear() or {}).get("peak_bytes", 0)
        self._process.stdin.close()
        self._process.wait(60)

    def _tell(self, word: str) -> None:
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _hear(self) -> dict[str, Any] | None:
        line = self._process.stdout.readline()
        if not line:
            self._fail()
            return None
        return json.loads(line)

    def _fail(self) -> None:
        lines = [line for line in self._log.read_text().splitlines() if line.strip()]
        self.failed = (lines or ["no output"])[-1][:160]


def measure(job: Job, title: str, args: argparse.Namespace) -> dict[str, Any]:
    """One table: {contestant: {"notes": [...], "peak_bytes": int, "failed": str}}, and the yardstick's notes."""
    logs = args.results / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    label = title.replace(", ", "-").replace(" ", "-")
    wanted = {"yardstick": YARDSTICK} | {
        name: CONTESTANTS[name][:2] for name in args.contestants if job.task in CONTESTANTS[name][2]
    }
    job.write(job.root / "job.json")
    workers = []
    for name, (module, python) in wanted.items():
        print(f"{title}: starting {name}", file=sys.stderr, flush=True)
        about = (name, module, python, job.root / "job.json", logs / f"{label}-{name}.log")
        workers.append(Worker(*about, own_malloc=args.own_malloc_for_all))
        workers[-1].turn()  # The first step, with what is compiled in it, while nobody else runs.
    for i in range(args.repetitions):
        print(f"{title}: round {i + 1} of {args.repetitions}", file=sys.stderr, flush=True)
        for worker in workers[i % len(workers) :] + workers[: i % len(workers)]:
            worker.turn()
    for worker in workers:
        worker.stop()
    found = {w.name: {"notes": w.notes, "peak_bytes": w.peak_bytes, "failed": w.failed} for w in workers}
    found = {"title": title, **job.work, "contestants": found}
    with (args.results / "results.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(report.table(found), flush=True)
    return found


def environment(own_malloc: bool) -> dict[str, str]:
    """What a contestant's process is started with."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
    path = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "TOKENIZERS_PARALLELISM": "false"}
    # What `python -m rlhf_jax.main` asks of glibc at its start; the peers run as their users run them.
    malloc = {"GLIBC_TUNABLES": tunables(os.cpu_count() or 1)} if own_malloc else {}
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    return (
        clean
        | threads
        | path
        | malloc
        | {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    )


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """An argument's type: some of these, with commas between them."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}; use some of {', '.join(known)}")
        return found

    return parse


def parser_of(doc: str, contestants: Sequence[str]) -> argparse.ArgumentParser:
    """What all measurements can be told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", type=names(contestants), default=list(contestants))
    parser.add_argument("--repetitions", type=int, default=5, help="timed ones, after the first")
    parser.add_argument(
        "--own-malloc-for-all", action="store_true", help="give the peers our glibc setting too"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    return parser


def prepare_to_measure(args: argparse.Namespace) -> None:
    """Leaves where a contestant is not installed; then keeps this process and its children to two cores."""
    for name in args.contestants:
        if not CONTESTANTS[name][1].exists():
            sys.exit(
                f"error: {CONTESTANTS[name][1]} is missing; run bash benchmarks/setup_peers.sh, or leave {name} out"
            )
    if hasattr(os, "sched_setaffinity"):  # Two threads each, also on a larger machine; children inherit it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    args.results.mkdir(parents=True, exist_ok=True)


def main() -> None:
    parser = parser_of(__doc__, tuple(CONTESTANTS))
    parser.add_argument("--tasks", type=names(TASKS), default=list(TASKS))
    parser.add_argument("--sizes", type=names(tuple(SIZES)), default=["small"])
    parser.add_argument("--ragged", action="store_true", help="lengths from a quarter to the full one")
    args = parser.parse_args()
    prepare_to_measure(args)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as root:
            folders.write(Path(root), SIZES[size])
            for task in args.tasks:
                job = Job(task, SIZES[size], args.ragged, Path(root), args.repetitions + 1)
                measure(job, f"{size}, {task}{', ragged' if args.ragged else ''}", args)


if __name__ == "__main__":
    main()
