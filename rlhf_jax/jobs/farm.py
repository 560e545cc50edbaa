"""The whole loop: every stage is another job, run in its own folder below the farm's."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.jobs import own_data, wanted
from rlhf_jax.microfarm import world
from rlhf_jax.parallel import startup
from rlhf_jax.training import workdir as folders

DEFAULT_ROOT = "runs/farm"  # What the pages' default paths start with.
MODELS = ("sft", "dpo", "ppo")
HOST_JOBS = ("annotate", "evaluate")  # They use no accelerator, so one process runs them for all.


class Stage(NamedTuple):
    """One job of the farm: its name and folder, the job's name and its settings."""

    name: str
    job: str
    config: ConfigDict


@folders.one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Runs what is not finished yet, then prints the leaderboard and where the report is."""
    ranges.check(config.to_dict())
    stages = list(plan(config, workdir))
    try:
        wanted.check(config, workdir)
        for stage in stages:
            # What a later stage asks for is said now, not after the stages before it have been trained.
            wanted.check(stage.config, str(Path(workdir) / stage.name), f"{stage.name}.", made=workdir)
    finally:  # Only who has joined can tell the others why they need not wait.
        startup.start(config.distributed)
    for stage in stages:
        if stage.job not in HOST_JOBS:
            wanted.check_models(stage.config, f"{stage.name}.", made=workdir)
    root = Path(workdir)
    folders.prepare(workdir, config.to_dict())
    started = time.monotonic()
    upstream = _build_world(config, root)
    for number, stage in enumerate(stages, 1):
        upstream = _fingerprint(upstream, stage.config)
        where = root / stage.name
        reused = folders.is_finished(where, upstream)
        if reused:
            _say(f"[{number}] {stage.name}: finished before")
            continue
        _say(f"[{number}] {stage.name}: {stage.job}")
        if stage.job not in HOST_JOBS or startup.is_main():
            importlib.import_module(f"rlhf_jax.jobs.{stage.job}").run(stage.config, str(where))
        startup.barrier(stage.name, timeout_s=24 * 3600.0)
        folders.finish(where, upstream)
    _conclude(root, time.monotonic() - started, told=not reused)


def plan(config: ConfigDict, workdir: str) -> Iterator[Stage]:
    """The stages in order, their paths moved from the default root to `workdir`."""

    def stage(name: str, page: str, **changes: str) -> Stage:
        settings = ConfigDict(config[page].to_dict())
        settings.update_from_flattened_dict(changes)
        return Stage(name, settings.job, _reroot(settings, workdir))

    for name in ("sft", "pairs", "val_pairs", "labels", "reward_model", "scores", "dpo", "ppo"):
        yield stage(name, name)
    for model in MODELS:
        where = f"{DEFAULT_ROOT}/{model}/export"
        yield stage(f"outputs/{model}", "outputs", **{"model.path": where, "model.name": model})
    yield stage("evaluate", "evaluate")


def _build_world(config: ConfigDict, root: Path) -> str:
    """Writes the world unless it is there; returns the fingerprint that every stage builds on."""
    where, w = root / "data", config.world
    about = {"seed": config.seed, **w.to_dict()}
    if w.instructions:
        about["content"] = folders.digest(w.instructions)
    fingerprint = _fingerprint("world", ConfigDict(about))
    if not folders.is_finished(where, fingerprint):
        if not w.instructions:
            _say(f"[0] data: {w.scale:g} x AlpacaFarm's splits")
        if startup.is_main() and w.instructions:
            _say("[0] data: " + own_data.split(w.instructions, where, rows=w.rows, seed=config.seed))
        elif startup.is_main():
            world.build(where, seed=config.seed, scale=w.scale, vocab_size=w.vocab_size)
        startup.barrier("data")  # Nobody finishes it before all have seen that it was not finished.
        folders.finish(where, fingerprint)
    return fingerprint


def _reroot(config: ConfigDict, workdir: str) -> ConfigDict:
    """Every path below the default root, moved below `workdir`."""
    text = json.dumps(config.to_dict()).replace(
        DEFAULT_ROOT + "/", json.dumps(workdir.rstrip("/"))[1:-1] + "/"
    )
    return ConfigDict(json.loads(text))


def _fingerprint(upstream: str, config: ConfigDict) -> str:
    """Changes when the settings of a stage, or of any stage before it, change."""
    return hashlib.sha256((upstream + config.to_json(sort_keys=True)).encode()).hexdigest()


def _conclude(root: Path, seconds: float, *, told: bool) -> None:
    """Puts the report where the farm's user looks; `told`: the evaluation has just printed its table."""
    if startup.is_main():
        for name in ("report.html", "leaderboard.csv"):
            shutil.copyfile(root / "evaluate" / name, root / name)
        if not told:
            print(f"\n{(root / 'evaluate' / 'leaderboard.txt').read_text()}")
        print(f"report: {(root / 'report.html').resolve()}")
        _say(f"done in {seconds:.0f} s")


def _say(text: str) -> None:
    if startup.is_main():
        print(text, flush=True)
