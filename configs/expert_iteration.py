"""Expert iteration: sample, score, keep the best of n, fine-tune on it, and again with the model that this made.

    python -m rlhf_jax.main --config=configs/expert_iteration.py --workdir=runs/expert_iteration

AlpacaFarm (Dubois et al. 2023): one round of best-of-16 on the unlabeled prompts, then SFT from the SFT model. Here two
rounds, on the farm's models (configs/farm.py), and beside them best-of-n itself, which only samples 16 times as much.
Every stage has its own folder: finished ones are reused, a killed one continues. `:continued` goes on from the round
before instead of training the SFT model anew. A page of your own takes any number of rounds:

    c = module_beside("configs/common.py", "expert_iteration").rounds_of(4, continued=True)
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside, sibling
from rlhf_jax.settings.page_fields import leaves

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "continued": continued, "smoke": smoke})


def microfarm() -> ConfigDict:
    return rounds_of(2, continued=False)


def rounds_of(rounds: int, *, continued: bool) -> ConfigDict:
    """So many rounds; continued: whether each trains the model of the round before, and not the first one anew."""
    c = ConfigDict()
    c.job = "study"
    c.seed = 0  # Of every stage; samples of round r have seed + r - 1.
    common.seeds(c)
    common.processes(c)
    c.report = "evaluate"  # The stage whose table is shown at the end and whose report is copied.

    first = "runs/farm/sft/export"  # What is sampled in the first round.
    # What each round samples from, and what it trains.
    policies = [first, *(f"{{round_{r}/sft}}/export" for r in range(1, rounds))]
    ranked = [f"round_{r}" for r in range(1, rounds + 1)]

    # The groups. A name in braces is the folder of that stage.
    c.samples = sibling(__file__, "generate")  # Of the first round.
    c.samples.data.prompts = "runs/farm/data/unlabeled.parquet"
    c.samples.data.rows = 3000
    c.samples.samples = 16
    c.samples.temperature = 1.0
    c.samples.model.name = "policy"
    c.scores = sibling(__file__, "score")
    c.best = sibling(__file__, "best_of_n")
    c.best.name = "best"
    c.sft = sibling(__file__, "sft")
    c.sft.data.eval = "runs/farm/data/val.parquet"
    c.sft.model.init = first
    c.sft.epochs = 2.0
    c.sft.optimizer.learning_rate = 5e-4
    c.sft.optimizer.warmup_steps = 10

    c.best_of_n = sibling(
        __file__, "generate"
    )  # Of the prompts of the evaluation, to keep the best of these.
    c.best_of_n.samples = 16
    c.best_of_n.temperature = 1.0
    c.best_of_n.model.path = first
    c.outputs = sibling(__file__, "generate")
    c.evaluate = sibling(__file__, "evaluate")
    c.evaluate.outputs = (
        "sft=runs/farm/outputs/sft/outputs.parquet,best_of_n={best_of_n/best}/outputs.parquet,"
        + (",".join(f"{name}={{outputs/{name}}}/outputs.parquet" for name in ranked))
    )
    c.evaluate.runs = ",".join(f"{name}={{{name}/sft}}" for name in ranked)
    c.evaluate.title = "expert iteration"

    # Later rounds sample as the first does, with other seeds: they take all else from its group.
    for r in range(2, rounds + 1):
        group = c[f"samples_{r}"] = ConfigDict(c.samples.to_dict())
        for field in set(leaves(c.samples)) - {"seed"}:
            *parents, last = field.split(".")
            here, there = group, c.samples
            for parent in parents:
                here, there = here[parent], there[parent]
            here[last] = there.get_ref(last)

    # The stages in their order: (name and folder, group of settings, overrides as on a command line).
    stages = []
    for r, policy in enumerate(policies, start=1):
        name, init = f"round_{r}", policy if continued else first
        group = "samples" if r == 1 else f"samples_{r}"
        stages += [
            (f"{name}/samples", group, f"model.path={policy}"),
            (f"{name}/scores", "scores", f"data.responses={{{name}/samples}}/outputs.parquet"),
            (f"{name}/best", "best", f"scored={{{name}/scores}}/scores.parquet"),
            (f"{name}/sft", "sft", f"data.train={{{name}/best}}/rows.parquet", f"model.init={init}"),
        ]
    stages += [
        ("best_of_n/samples", "best_of_n"),
        ("best_of_n/scores", "scores", "data.responses={best_of_n/samples}/outputs.parquet"),
        ("best_of_n/best", "best", "scored={best_of_n/scores}/scores.parquet", "name=best_of_n"),
        *(
            (f"outputs/{name}", "outputs", f"model.path={{{name}/sft}}/export", f"model.name={name}")
            for name in ranked
        ),
        ("evaluate", "evaluate"),
    ]
    c.stages = tuple(stages)

    for name in ("samples", "sft", "best_of_n", "outputs", "evaluate"):
        c[name].seed = c.get_ref("seed")
    for r in range(2, rounds + 1):
        c[f"samples_{r}"].seed = c.get_ref("seed") + (r - 1)
    for name in ("samples", "scores", "sft", "best_of_n", "outputs"):
        c[name].distributed = c.get_ref("distributed")
    return c


def continued() -> ConfigDict:
    return rounds_of(2, continued=True)


def smoke() -> ConfigDict:
    """Every stage, a few steps each, on a farm of any size: to see that the machinery works, not what it reaches."""
    c = microfarm()
    c.samples.data.rows = 32
    c.samples.samples = 4
    c.best_of_n.samples = 2
    c.sft.epochs = 1.0
    c.sft.data.eval_rows = 16
    c.sft.optimizer.warmup_steps = 1
    c.evaluate.max_instructions = 32
    return c
