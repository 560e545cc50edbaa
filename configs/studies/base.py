"""What the studies of configs/studies share: the farm's stages, and groups that read them. No page itself.

    base = module_beside(__file__, "base")          # in a page of this folder

A study's first stages are those of configs/farm.py:whole with its settings, so that all studies of one workdir share
them.
"""

import re
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from rlhf_jax.ranges import value_at
from rlhf_jax.settings import module_beside, sibling
from rlhf_jax.settings.page_fields import leaves

common = module_beside(__file__, "../common")

# The farm's stages that all methods start from, and the two among them of which one serves every seed.
START = ("data", "sft", "pairs", "val_pairs", "labels", "reward_model", "scores")
ONCE = ("data", "sft")


def farm(*, seeds: tuple[int, ...]) -> ConfigDict:
    """A study with the farm's groups and its stages up to the reward model, these but the first two for every seed."""
    c = sibling(__file__, "../farm", "whole")
    c.seeds = seeds
    c.once = ONCE
    c.stages = tuple(stage for stage in c.stages if stage[0] in START)
    c.report = ""
    return c


def add(c: ConfigDict, name: str, page: str = "", variant: str = "") -> ConfigDict:
    """Puts a group into a study, made of a page: what it reads of the farm are the study's own stages."""
    c[name] = sibling(__file__, f"../{page or name}", variant)
    for field in leaves(c[name]):
        value = value_at(c[name], field)
        if isinstance(value, str) and "runs/farm/" in value:
            c[name].update_from_flattened_dict({field: _read_here(value)})
    for field in ("seed", "distributed"):
        if field in c[name]:
            c[name][field] = c.get_ref(field)
    return c[name]


def compare(c: ConfigDict, study: str, results: str, runs: Mapping[str, str]) -> None:
    """Puts the last stage into a study: its results beside what configs/studies/STUDY.yaml says was published.

    runs: name -> stage, of those whose curves are shown.
    """
    add(c, "compare")
    c.compare.claims = f"configs/studies/{study}.yaml"
    c.compare.results = results
    c.compare.runs = ",".join(f"{name}={{{stage}}}" for name, stage in runs.items())
    c.stages = (*c.stages, (study, "compare"))
    c.once = (*c.once, study)
    c.report = study
    keep_groups(c)


def keep_groups(c: ConfigDict) -> None:
    """Takes out the farm's groups that no stage of the study is of, so that none of their settings do nothing."""
    used = {group for _, group, *_ in c.stages}
    for name in [name for name, value in c.items() if isinstance(value, ConfigDict) and "job" in value]:
        if name not in used:
            del c[name]


def small(c: ConfigDict) -> ConfigDict:
    """The farm's groups of a study with a few steps each: to see that the machinery works, not what it reaches."""
    c.world.scale = 0.05
    c.sft.epochs = 1.0
    c.sft.model.width = 32
    c.sft.model.layers = 2
    c.sft.model.ff = 64
    for name, rows in (("pairs", 96), ("val_pairs", 48)):
        if name in c:
            c[name].data.rows = rows
    if "reward_model" in c:
        c.reward_model.data.eval_rows = 16
        c.reward_model.epochs = 1.0
        c.reward_model.optimizer.warmup_steps = 1  # None may be longer than its run.
    c.sft.optimizer.warmup_steps = 1
    return c


def small_methods(c: ConfigDict, methods: Iterable[str]) -> ConfigDict:
    """The same for the groups of some methods."""
    for name in methods:
        c[name].data.eval_rows = 16
        c[name].optimizer.warmup_steps = 1
        if "rollout" in c[name]:
            c[name].steps = 2
            c[name].rollout.batch_size = 32
            c[name].minibatch_size = 16
        else:
            c[name].epochs = 1.0
    return c


def outputs_of(*names: str) -> tuple[tuple[str, ...], ...]:
    """A stage for each of some trained models: what it answers to the prompts of the evaluation."""
    return tuple((f"outputs/{n}", "outputs", f"model.path={{{n}}}/export", f"model.name={n}") for n in names)


def ranked(*names: str) -> str:
    """Their outputs, for a stage that ranks them."""
    return ",".join(f"{name}={{outputs/{name}}}/outputs.parquet" for name in names)


def _read_here(paths: str) -> str:
    """runs/farm/labels/x -> {labels}/x; the outputs of a model are the stage outputs/MODEL."""
    return re.sub(r"runs/farm/((?:outputs/)?[\w.-]+)", r"{\1}", paths)
