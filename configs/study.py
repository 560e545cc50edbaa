"""A study: stages, each a method or a job, run in the order in which this page lists them. This one tries two betas.

    python -m rlhf_jax.main --config=configs/study.py --workdir=runs/betas

Trains DPO twice on the labels that the farm (configs/farm.py) has made, samples both models and ranks them beside the
SFT model. docs/studies.md tells how to write one of your own.

The studies of configs/studies are variants of this page. Each runs an experiment of the papers, and ends with a report
that says of every published finding whether it shows:

    python -m rlhf_jax.main --config=configs/study.py:table2 --workdir=runs/studies

    table2              every method from one SFT model, by simulated judges and by the true utility
    overoptimization    true win rate along PPO and best-of-n, by labels of people, a noisy pool and one careful judge
    ratings_vs_rankings reward models of ratings and of rankings, and both evaluations of what they choose
    teacher_vs_feedback imitating a strong teacher, or feedback on a weak one; the share of its data
    rrhf_vs_ppo         reward, KL and perplexity of PPO, and of RRHF by its ways of sampling
    human_vs_simulated  methods trained and ranked by people's labels, and by the simulated pool's

In one workdir what two of them list alike is run once. `:NAME,quick` takes minutes, and `:NAME,smoke` only shows that
the machinery works; each wants a workdir of its own.
"""

from functools import partial

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside, sibling

common = module_beside(__file__, "common")

STUDIES = (
    *("table2", "overoptimization", "ratings_vs_rankings"),
    *("teacher_vs_feedback", "rrhf_vs_ppo", "human_vs_simulated"),
)


def get_config(variant: str = "microfarm") -> ConfigDict:
    name, _, size = variant.partition(",")  # As in table2,quick.
    studies = {study: partial(sibling, __file__, f"studies/{study}", size) for study in STUDIES}
    return choose_variant(name if name in STUDIES else variant, {"microfarm": microfarm, **studies})


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
