"""Over-optimisation: true win rate along PPO's steps and along the n of best-of-n, for reward models of several labels.

    python -m rlhf_jax.main --config=configs/study.py:overoptimization --workdir=runs/studies

Labels of the world's human, of the noisy pool and of one careful judge; fewer of them; ensembles of reward models. PPO
has no KL penalty here and goes on long after the reward model is fooled. `:overoptimization,quick` has three reward
models and fewer steps. --config.seeds="(0,1,2)" repeats all behind the SFT model.

At seed 0 (two CPU cores shared with other runs, 62 minutes for three reward models and 34 for the rest), true win rate
along PPO: people's labels 37.3 to 68.4 (steps 40 to 60) to 41.2 %, the pool 37.3 to 63.1 to 29.1 %, the careful judge
37.3 to 72.9 to 53.7 %; the scores end at their highest, the pool's within 0.01 of it. Best of 64: 62.7, 59.8 and
70.3 %; with 4,000 labels instead of 18,800 the pool's 58.1 and the careful judge's 68.1 %; ensembles of 3 and 5 of the
pool's reward models 65.4 and 64.9 %. docs/findings.md has the rest.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

base = module_beside(__file__, "base")

# Who labels, beside the pool whose labels the farm has.
LABELS = {"human": "configs/judges/micro_human.yaml", "clean": "configs/judges/micro_clean.yaml"}
# Reward models of the pool's labels and of the careful judge's: fewer labels, seen as often as all of them would be.
FEWER = ("data.train_rows=4000", "epochs=2.8")
MORE = {
    "pool_4k": ("labels", *FEWER),
    "clean_4k": ("labels_clean", *FEWER),
    "pool_x3": ("labels", "members=3", "member_order=true"),
    "pool_x5": ("labels", "members=5", "member_order=true"),
}


def get_config(variant: str = "full") -> ConfigDict:
    return choose_variant(variant, {"full": full, "quick": quick, "smoke": smoke})


def full() -> ConfigDict:
    return _study(MORE)


def quick() -> ConfigDict:
    c = _study({})
    c.pairs.data.rows = 4000
    c.ppo_free.steps = 120
    c.many.data.rows = 256
    return c


def smoke() -> ConfigDict:
    """Every stage, a few steps each: to see that the machinery works, not what it reaches."""
    c = base.small(_study({}))
    c.ppo_free.steps = 4
    c.ppo_free.eval_every = 1
    c.ppo_free.rollout.batch_size = 16
    c.ppo_free.minibatch_size = 16
    c.ppo_free.data.eval_rows = 16
    c.ppo_free.optimizer.warmup_steps = 1
    c.many.data.rows = 16
    c.many.samples = 4
    return c


def _study(more: dict[str, tuple[str, ...]]) -> ConfigDict:
    c = base.farm(seeds=(0,))
    base.add(c, "ppo_free", "ppo")
    c.ppo_free.kl_coef = 0.0
    c.ppo_free.steps = 260
    c.ppo_free.save_every = 130
    c.ppo_free.data.eval_rows = 256
    c.ppo_free.best_metric = ""  # The last one: that is the point.
    base.add(c, "many", "generate")  # Of the prompts that PPO is evaluated on, for best-of-n.
    c.many.data.prompts = "{data}/val.parquet"
    c.many.data.rows = 512
    c.many.samples = 64
    c.many.temperature = 1.0
    base.add(c, "utility_curves")

    # NAME: (its labels, overrides of its reward model). The pool's own is the farm's.
    models = {name: (f"labels_{name}",) for name in LABELS} | more
    trained = {"pool": "reward_model"} | {name: f"reward_models/{name}" for name in models}
    c.stages = (
        *c.stages,
        *(
            (f"labels_{name}", "labels", f"judges={file}", "p_label_flip=0.0")
            for name, file in LABELS.items()
        ),
        *(
            (trained[name], "reward_model", f"data.train={{{labels}}}/labels.parquet", *changes)
            for name, (labels, *changes) in models.items()
        ),
        *(
            (f"free/{name}", "ppo_free", f"model.reward={{{model}}}/export")
            for name, model in trained.items()
        ),
        ("many", "many"),
        *(
            (
                f"many_scores/{name}",
                "scores",
                "data.responses={many}/outputs.parquet",
                f"model.path={{{model}}}/export",
            )
            for name, model in trained.items()
        ),
        ("utility_curves", "utility_curves"),
    )
    c.utility_curves.runs = ",".join(f"{name}={{free/{name}}}" for name in trained)
    c.utility_curves.scored = ",".join(f"{name}={{many_scores/{name}}}/scores.parquet" for name in trained)
    results = "steps={utility_curves}/steps.parquet,best_of={utility_curves}/best_of.parquet"
    base.compare(c, "overoptimization", results, {name: f"free/{name}" for name in trained})
    return c
