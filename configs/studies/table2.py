"""AlpacaFarm's table 2: every method from one SFT model, ranked by the simulated judges and by the true utility.

    python -m rlhf_jax.main --config=configs/study.py:table2 --workdir=runs/studies

Four seeds of everything behind the SFT model: pairs, labels, the reward model, and what each method makes of them.
`:table2,quick` is one seed of the paper's own methods with fewer labels.

By the simulated judges, means of four seeds, in %: PPO 61.7, distillation 61.6, expert iteration 61.5, GRPO 61.0, Quark
60.6, online DPO 59.3, DPO 58.6, RRHF 58.3, KTO 58.2, best of 16 57.6, FeedME 51.6, SFT 50.9, reward
conditioning 50.7; their ranks and the true ones: Spearman 0.97 [0.71, 0.98]. On two CPU cores beside other
runs three seeds took 53 minutes and the fourth 16 more; `:table2,quick` took 9.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

base = module_beside(__file__, "base")

# The methods that the paper has, but for best-of-16 and expert iteration, which are made of several stages.
PAPER = ("feedme", "reward_conditioning", "dpo", "ppo", "quark")
OTHERS = ("kto", "rrhf", "grpo", "online_dpo", "distillation")


def get_config(variant: str = "full") -> ConfigDict:
    return choose_variant(variant, {"full": full, "quick": quick, "smoke": smoke})


def full() -> ConfigDict:
    return _study((*PAPER, *OTHERS), seeds=(0, 1, 2, 3))


def quick() -> ConfigDict:
    c = _study(PAPER, seeds=(0,))
    c.pairs.data.rows = 4000
    c.unlabeled.data.rows = 1500
    return c


def smoke() -> ConfigDict:
    """Every stage, a few steps each: to see that the machinery works, not what it reaches."""
    c = base.small_methods(base.small(_study(PAPER, seeds=(0, 1))), (*PAPER, "expert_iteration"))
    c.unlabeled.data.rows = 32
    c.unlabeled.samples = 4
    c.sixteen.samples = 2
    c.evaluate.max_instructions = 32
    return c


def _study(methods: tuple[str, ...], *, seeds: tuple[int, ...]) -> ConfigDict:
    c = base.farm(seeds=seeds)
    for name in methods:
        if name not in c:
            base.add(c, name)
    if "rrhf" in methods:  # It ranks the responses that the labels are of.
        c.rrhf.data.train = "{candidates}/scores.parquet"

    base.add(c, "sixteen", "generate")  # Of each prompt of the evaluation, for best-of-16.
    c.sixteen.samples = 16
    c.sixteen.temperature = 1.0
    base.add(
        c, "unlabeled", "generate"
    )  # The same of prompts to train on, for one round of expert iteration.
    c.unlabeled.data.prompts = "{data}/unlabeled.parquet"
    c.unlabeled.data.rows = 3000
    c.unlabeled.samples = 16
    c.unlabeled.temperature = 1.0
    base.add(c, "best", "best_of_n")
    base.add(c, "expert_iteration", "sft")
    c.expert_iteration.model.init = "{sft}/export"
    c.expert_iteration.data.train = "{expert/best}/rows.parquet"
    c.expert_iteration.data.eval = "{data}/val.parquet"
    c.expert_iteration.epochs = 2.0
    c.expert_iteration.optimizer.learning_rate = 5e-4
    c.expert_iteration.optimizer.warmup_steps = 10

    trained = (*methods, "expert_iteration")
    c.evaluate.outputs = f"best_of_16={{sixteen/best}}/outputs.parquet,{base.ranked('sft', *trained)}"
    c.evaluate.runs = ",".join(f"{name}={{{name}}}" for name in ("sft", "reward_model", *trained))
    c.evaluate.title = "every method from one SFT model"

    read = "data.responses={%s}/outputs.parquet"
    c.stages = (
        *c.stages,
        *((("candidates", "scores", read % "pairs"),) if "rrhf" in methods else ()),
        *((name, name) for name in methods),
        ("sixteen/samples", "sixteen"),
        ("sixteen/scores", "scores", read % "sixteen/samples"),
        ("sixteen/best", "best", "scored={sixteen/scores}/scores.parquet", "name=best_of_16"),
        ("expert/samples", "unlabeled"),
        ("expert/scores", "scores", read % "expert/samples"),
        ("expert/best", "best", "scored={expert/scores}/scores.parquet"),
        ("expert_iteration", "expert_iteration"),
        *base.outputs_of("sft", *trained),
        ("evaluate", "evaluate"),
    )
    base.compare(
        c,
        "table2",
        "ranked={evaluate}/per_instruction.parquet",
        {n: n for n in ("sft", "reward_model", *trained)},
    )
    return c
