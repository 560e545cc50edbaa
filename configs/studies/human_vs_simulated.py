"""Methods trained on people's labels and on the simulated pool's, each ranked by its own kind of judge.

    python -m rlhf_jax.main --config=configs/study.py:human_vs_simulated --workdir=runs/studies

AlpacaFarm's two columns: what a simulator is for is that methods developed in it rank alike with people. People are the
embedded world's, who know its true utility and are noisy. `:human_vs_simulated,quick` is one seed with fewer labels.

Win rates of three seeds, ranked by people: PPO 63.2, Quark 61.4, best of 16 59.2, DPO 58.2, FeedME 54.4, SFT 51.8,
reward conditioning 51.3 %; by the pool: 61.3, 59.8, 57.3, 57.9, 51.9, 51.0, 51.4 %. The ranks: Spearman 0.93
[0.71, 1.00]. On two CPU cores beside other programs it took 41 minutes behind `:table2` in the same workdir, whose
stages it shares.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

base = module_beside(__file__, "base")

METHODS = ("feedme", "reward_conditioning", "dpo", "ppo", "quark")
SIDES = ("simulated", "human")


def get_config(variant: str = "full") -> ConfigDict:
    return choose_variant(variant, {"full": full, "quick": quick, "smoke": smoke})


def full() -> ConfigDict:
    return _study(seeds=(0, 1, 2))


def quick() -> ConfigDict:
    c = _study(seeds=(0,))
    c.pairs.data.rows = 3000
    for name in ("ppo", "quark"):
        c[name].steps = 40
    return c


def smoke() -> ConfigDict:
    """Every stage, a few steps each: to see that the machinery works, not what it reaches."""
    c = base.small_methods(base.small(_study(seeds=(0,))), METHODS)
    c.sixteen.samples = 2
    c.evaluate.max_instructions = 32
    return c


def _study(*, seeds: tuple[int, ...]) -> ConfigDict:
    c = base.farm(seeds=seeds)
    for name in METHODS:
        if name not in c:
            base.add(c, name)
    base.add(c, "sixteen", "generate")
    c.sixteen.samples = 16
    c.sixteen.temperature = 1.0
    base.add(c, "best", "best_of_n")
    c.evaluate.labels, c.evaluate.scored, c.evaluate.runs = "", "", ""

    # On the simulated side the stages have the names that they have in table2, so that both studies share them.
    labels = {"simulated": "labels", "human": "labels_human"}
    models = {"simulated": "reward_model", "human": "reward_models/human"}
    stages = [
        *(stage for stage in c.stages if stage[0] in ("data", "sft", "pairs", "labels", "reward_model")),
        ("labels_human", "labels", "judges=configs/judges/micro_human.yaml", "p_label_flip=0.0"),
        ("reward_models/human", "reward_model", "data.train={labels_human}/labels.parquet"),
        ("sixteen/samples", "sixteen"),
        *base.outputs_of("sft"),
    ]
    for side, before in zip(SIDES, ("", "human/"), strict=True):
        names = {name: f"{before}{name}" for name in METHODS}
        for name, stage in names.items():
            # A method reads labels or a reward model; whichever it is, this side's.
            reads = (
                f"model.reward={{{models[side]}}}/export"
                if "reward" in c[name].model
                else f"data.train={{{labels[side]}}}/labels.parquet"
            )
            stages.append((stage, name, *((reads,) if side == "human" else ())))
        scores = f"sixteen/{'scores' if side == 'simulated' else side}"
        stages += [
            (
                scores,
                "scores",
                "data.responses={sixteen/samples}/outputs.parquet",
                f"model.path={{{models[side]}}}/export",
            ),
            (
                f"sixteen/best{before and '_human'}",
                "best",
                f"scored={{{scores}}}/scores.parquet",
                "name=best_of_16",
            ),
        ]
        stages += base.outputs_of(*names.values())
        outputs = [
            "sft={outputs/sft}/outputs.parquet",
            f"best_of_16={{sixteen/best{before and '_human'}}}/outputs.parquet",
        ]
        outputs += [f"{name}={{outputs/{stage}}}/outputs.parquet" for name, stage in names.items()]
        judges = "pool" if side == "simulated" else "human"
        stages.append(
            (
                f"ranked/{side}",
                "evaluate",
                f"outputs={','.join(outputs)}",
                f"judges=configs/judges/micro_{judges}.yaml",
                f"title={side}",
            )
        )
    c.stages = tuple(stages)
    results = ",".join(f"{side}={{ranked/{side}}}/per_instruction.parquet" for side in SIDES)
    runs = {name: name for name in METHODS} | {f"{name} (human)": f"human/{name}" for name in METHODS}
    base.compare(c, "human_vs_simulated", results, runs)
    return c
