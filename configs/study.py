"""A study: stages, each a method or a job, run in the order in which this page lists them. This one tries two betas.

    python -m rlhf_jax.main --config=configs/study.py --workdir=runs/betas

Trains DPO twice on the labels that the farm (configs/farm.py) has made, samples both models and ranks them beside the
SFT model. docs/studies.md tells how to write one of your own.

    python -m rlhf_jax.main --config=configs/study.py:methods --workdir=runs/methods

Every method from the farm's SFT model, with its page's defaults, and all of them ranked beside it (AlpacaFarm's table
2, Dubois et al. 2023: PPO 46.8, DPO 46.8, best-of-16 45.0, expert iteration 41.9, SFT 36.7, FeedME 36.6, Quark 35.6,
reward conditioning 32.4). Other seeds are other workdirs, each with a farm of its own.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside, sibling

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "methods": methods})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "study"
    c.seed = 0  # Of every stage.
    common.seeds(c)
    common.processes(c)
    c.report = "evaluate"  # The stage whose table is shown at the end and whose report is copied; "": none.

    # Settings, in groups that several stages may share. A name in braces is the folder of that stage.
    c.dpo = sibling(__file__, "dpo")
    c.outputs = sibling(__file__, "generate")
    c.evaluate = sibling(__file__, "evaluate")
    names = ("beta_0.02", "beta_0.2")
    c.evaluate.outputs = "sft=runs/farm/outputs/sft/outputs.parquet," + ",".join(
        f"{name}={{outputs/{name}}}/outputs.parquet" for name in names
    )
    c.evaluate.runs = ",".join(f"{name}={{{name}}}" for name in names)
    c.evaluate.title = "two betas of DPO"

    # The stages in their order: (name and folder, group of settings, overrides as on a command line).
    c.stages = (
        ("beta_0.02", "dpo", "beta=0.02"),
        ("beta_0.2", "dpo", "beta=0.2"),
        *((f"outputs/{n}", "outputs", f"model.path={{{n}}}/export", f"model.name={n}") for n in names),
        ("evaluate", "evaluate"),
    )

    for name in ("dpo", "outputs", "evaluate"):
        c[name].seed = c.get_ref("seed")
    for name in ("dpo", "outputs"):
        c[name].distributed = c.get_ref("distributed")
    return c


# Every method trains from the farm's files as its page says; RRHF's candidates, and what is kept of several samples,
# are made by stages of their own.
METHODS = ("dpo", "kto", "rrhf", "feedme", "reward_conditioning", "quark")
METHODS += ("ppo", "grpo", "online_dpo", "distillation")


def methods() -> ConfigDict:
    c = ConfigDict()
    c.job = "study"
    c.seed = 0  # Of every stage.
    common.seeds(c)
    common.processes(c)
    c.report = "evaluate"

    for name in METHODS:
        c[name] = sibling(__file__, name)
    c.candidates = sibling(__file__, "generate", "pairs")  # What RRHF ranks.
    c.candidates.data.rows = 3000
    c.candidates.samples = 4
    c.rrhf.data.train = "{candidates/scores}/scores.parquet"
    c.scores = sibling(__file__, "score")
    c.best = sibling(__file__, "best_of_n")
    c.sixteen = sibling(__file__, "generate")  # Of each prompt of the evaluation, for best-of-16.
    c.sixteen.samples = 16
    c.sixteen.temperature = 1.0
    c.unlabeled = sibling(
        __file__, "generate"
    )  # The same of prompts to train on, for one round of expert iteration.
    c.unlabeled.data.prompts = "runs/farm/data/unlabeled.parquet"
    c.unlabeled.data.rows = 3000
    c.unlabeled.samples = 16
    c.unlabeled.temperature = 1.0
    c.expert_iteration = sibling(__file__, "sft")
    c.expert_iteration.model.init = "runs/farm/sft/export"
    c.expert_iteration.data.train = "{expert/best}/rows.parquet"
    c.expert_iteration.data.eval = "runs/farm/data/val.parquet"
    c.expert_iteration.epochs = 2.0
    c.expert_iteration.optimizer.learning_rate = 5e-4

    trained = (*METHODS, "expert_iteration")
    c.outputs = sibling(__file__, "generate")
    c.evaluate = sibling(__file__, "evaluate")
    c.evaluate.outputs = (
        "sft=runs/farm/outputs/sft/outputs.parquet,best_of_16={sixteen/best}/outputs.parquet,"
        + ",".join(f"{name}={{outputs/{name}}}/outputs.parquet" for name in trained)
    )
    c.evaluate.runs = ",".join(f"{name}={{{name}}}" for name in trained)
    c.evaluate.title = "every method from one SFT model"

    c.stages = (
        ("candidates/samples", "candidates"),
        ("candidates/scores", "scores", "data.responses={candidates/samples}/outputs.parquet"),
        *((name, name) for name in METHODS),
        ("sixteen/samples", "sixteen"),
        ("sixteen/scores", "scores", "data.responses={sixteen/samples}/outputs.parquet"),
        ("sixteen/best", "best", "scored={sixteen/scores}/scores.parquet", "name=best_of_16"),
        ("expert/samples", "unlabeled"),
        ("expert/scores", "scores", "data.responses={expert/samples}/outputs.parquet"),
        ("expert/best", "best", "scored={expert/scores}/scores.parquet"),
        ("expert_iteration", "expert_iteration"),
        *((f"outputs/{n}", "outputs", f"model.path={{{n}}}/export", f"model.name={n}") for n in trained),
        ("evaluate", "evaluate"),
    )

    for name in (*trained, "candidates", "sixteen", "unlabeled", "outputs", "evaluate"):
        c[name].seed = c.get_ref("seed")
    for name in (*trained, "candidates", "scores", "sixteen", "unlabeled", "outputs"):
        c[name].distributed = c.get_ref("distributed")
    return c
