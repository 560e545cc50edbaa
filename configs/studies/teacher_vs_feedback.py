"""Imitating a strong teacher, or feedback on a weak one: dpo-rlaif's figures 2, 3 and 5.

    python -m rlhf_jax.main --config=configs/study.py:teacher_vs_feedback --workdir=runs/studies

The weak teacher is the world's crowd of writers, the strong one always answers as well as can be; the critic is the
careful judge. All start from the SFT model, which stands for a pretrained one. `:teacher_vs_feedback,quick` is one
seed.

It took 1921 s on two CPU cores beside tests, behind `:ratings_vs_rankings` in the same workdir, by the simulated judge:
weak teacher, 10 % 49.9, with feedback 64.8; 100 % 52.8; strong teacher, 10 % 68.2, with feedback 79.0; 100 % 73.9;
distilled 67.1 %. `:teacher_vs_feedback,quick` took 20 minutes.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

base = module_beside(__file__, "base")

ROWS = 9000  # Of each teacher, which are 100 %.
SHARES = (10, 25, 50, 100)


def get_config(variant: str = "full") -> ConfigDict:
    return choose_variant(variant, {"full": full, "quick": quick, "smoke": smoke})


def full() -> ConfigDict:
    return _study(seeds=(0, 1, 2), rows=ROWS)


def quick() -> ConfigDict:
    c = _study(seeds=(0,), rows=3000)
    c.samples.data.rows = 3000
    return c


def smoke() -> ConfigDict:
    """Every stage, a few steps each: to see that the machinery works, not what it reaches."""
    c = base.small(_study(seeds=(0,), rows=200))
    base.small_methods(c, ("imitate", "dpo", "distillation"))
    c.samples.data.rows = 64
    c.evaluate.max_instructions = 32
    return c


def _study(*, seeds: tuple[int, ...], rows: int) -> ConfigDict:
    c = base.farm(seeds=seeds)
    base.add(c, "teacher", "annotate", "completions")
    c.teacher.instructions = "{data}/preference.parquet"
    base.add(c, "imitate", "sft")
    c.imitate.model.init = "{sft}/export"
    c.imitate.data.eval = "{data}/val.parquet"
    c.imitate.epochs = 3.0
    c.imitate.optimizer.learning_rate = 5e-4
    c.imitate.optimizer.warmup_steps = 10
    base.add(
        c, "samples", "generate", "pairs"
    )  # Of a tenth's model, on prompts that no teacher has answered.
    c.samples.data.prompts = "{data}/unlabeled.parquet"
    c.samples.data.rows = 6000
    base.add(c, "critic", "annotate")
    c.critic.judges = "configs/judges/micro_clean.yaml"
    c.critic.p_label_flip = 0.0
    base.add(c, "distillation")
    c.distillation.model.policy = "{weak_10}/export"
    c.distillation.model.teacher = "{strong_100}/export"

    def share(teacher: str, percent: int) -> tuple[str, ...]:
        train = f"data.train={{teachers/{teacher}}}/labels.parquet"
        return (f"{teacher}_{percent}", "imitate", train, f"data.train_rows={rows * percent // 100}")

    def feedback(teacher: str) -> tuple[tuple[str, ...], ...]:
        """Samples of a tenth's model, the critic's labels, and DPO from that model."""
        model, name = f"model.path={{{teacher}_10}}/export", f"{teacher}_10_rlaif"
        return (
            (f"critics/{teacher}/samples", "samples", model),
            (f"critics/{teacher}/labels", "critic", f"samples={{critics/{teacher}/samples}}/outputs.parquet"),
            (
                name,
                "dpo",
                f"model.init={{{teacher}_10}}/export",
                f"data.train={{critics/{teacher}/labels}}/labels.parquet",
            ),
        )

    trained = (
        *(f"weak_{percent}" for percent in SHARES),
        *(f"strong_{percent}" for percent in SHARES),
        *("weak_10_rlaif", "strong_10_rlaif", "distilled"),
    )
    c.evaluate.outputs = base.ranked("sft", *trained)
    c.evaluate.runs, c.evaluate.labels, c.evaluate.scored = "", "", ""
    c.evaluate.judges = "configs/judges/micro_clean.yaml"
    c.evaluate.title = "teacher against feedback"
    c.stages = (
        *(stage for stage in c.stages if stage[0] in ("data", "sft")),
        ("teachers/weak", "teacher"),
        ("teachers/strong", "teacher", "judges=configs/judges/micro_completions_strong.yaml"),
        *(share("weak", percent) for percent in SHARES),
        *(share("strong", percent) for percent in SHARES),
        *feedback("weak"),
        *feedback("strong"),
        ("distilled", "distillation"),
        *base.outputs_of("sft", *trained),
        ("evaluate_teachers", "evaluate"),
    )
    results = "ranked={evaluate_teachers}/per_instruction.parquet"
    base.compare(c, "teacher_vs_feedback", results, {name: name for name in trained})
    return c
