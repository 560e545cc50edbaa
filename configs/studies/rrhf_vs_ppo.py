"""RRHF against PPO: reward, KL, perplexity and time, and what RRHF's ways of sampling make of it.

    python -m rlhf_jax.main --config=configs/study.py:rrhf_vs_ppo --workdir=runs/studies

All start from one SFT model and have one reward model. Of RRHF: diverse beams with the demonstrations (DP), plain beams
with them (BP), diverse beams alone (D), temperature samples with them (SP), two rounds of these (IP-2), and online
sampling with and without a KL term (OP-32). `:rrhf_vs_ppo,quick` is one seed.

Reward and true win rate against SFT: PPO 0.338, 80.4 %; RRHF DP 0.183, 65.7; BP 0.257, 76.1; D 0.168, 65.8; SP 0.203,
69.0; IP-2 0.305, 76.1; OP-32 0.370, 76.9; with KL 0.365, 77.0; SFT 0.006. It took 56 minutes on two CPU cores beside
tests and plans, behind `:teacher_vs_feedback` in the same workdir.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

base = module_beside(__file__, "base")

# How the candidates of each are made, and whether the demonstrations stand beside them.
SAMPLED = {
    "dp": ("diverse", True),
    "bp": ("beams", True),
    "d": ("diverse", False),
    "sp": ("sampled", True),
}
CANDIDATES = {
    "diverse": ("beams=4", "beam_groups=4", "diversity_penalty=1.0"),
    "beams": ("beams=4",),
    "sampled": (),
}
ONLINE = {"op": "op_32", "op_kl": "op_32_kl"}


def get_config(variant: str = "full") -> ConfigDict:
    return choose_variant(variant, {"full": full, "quick": quick, "smoke": smoke})


def full() -> ConfigDict:
    return _study(seeds=(0, 1, 2))


def quick() -> ConfigDict:
    c = _study(seeds=(0,))
    c.pairs.data.rows = 4000
    c.candidates.data.rows = 1000
    c.demonstrations.data.rows = 1000
    c.ppo.steps = 40
    return c


def smoke() -> ConfigDict:
    """Every stage, a few steps each: to see that the machinery works, not what it reaches."""
    c = base.small(_study(seeds=(0,)))
    base.small_methods(c, ("rrhf", "ppo", *(f"online_{name}" for name in ONLINE)))
    c.candidates.data.rows = 64
    c.demonstrations.data.rows = 64
    c.policies.data.rows = 32
    c.policies.data.pair_rows = 32
    c.evaluate.max_instructions = 32
    return c


def _study(*, seeds: tuple[int, ...]) -> ConfigDict:
    c = base.farm(seeds=seeds)
    base.add(c, "demonstrations", "score")  # What the prompts came with, scored like all candidates.
    c.demonstrations.data.responses = "{data}/preference.parquet"
    c.demonstrations.data.rows = 3000
    base.add(c, "candidates", "generate", "pairs")
    c.candidates.data.rows = 3000
    c.candidates.samples = 4
    base.add(c, "rrhf")
    for name, variant in ONLINE.items():
        base.add(c, f"online_{name}", "rrhf_online", variant)
    base.add(c, "policies", "measure_policies")

    trained = ("ppo", *(f"rrhf_{name}" for name in (*SAMPLED, "ip_2", *ONLINE)))
    c.policies.data.pair_rows = 1500  # All of the labels take five minutes a policy.
    c.policies.policies = ",".join(f"{name}={{{name}}}/export" for name in trained) + ",sft={sft}/export"
    c.evaluate.outputs = base.ranked("sft", *trained)
    c.evaluate.runs, c.evaluate.labels, c.evaluate.scored = "", "", ""
    c.evaluate.title = "RRHF against PPO"

    def scored(candidates: str) -> tuple[str, ...]:
        return (f"{candidates}/scores", "scores", f"data.responses={{{candidates}/samples}}/outputs.parquet")

    def trained_on(name: str, candidates: str, provided: bool) -> tuple[str, ...]:
        files = f"{{{candidates}/scores}}/scores.parquet" + (
            ",{demonstrations}/scores.parquet" if provided else ""
        )
        return (f"rrhf_{name}", "rrhf", f"data.train={files}")

    again = "ranked/sampled_again"  # The second round samples from what the first has made.
    c.stages = (
        *(stage for stage in c.stages if stage[0] not in ("val_pairs", "scores")),
        ("ppo", "ppo"),
        ("demonstrations", "demonstrations"),
        *((f"ranked/{name}/samples", "candidates", *how) for name, how in CANDIDATES.items()),
        *(scored(f"ranked/{name}") for name in CANDIDATES),
        *(trained_on(name, f"ranked/{how}", provided) for name, (how, provided) in SAMPLED.items()),
        (f"{again}/samples", "candidates", "model.path={rrhf_sp}/export"),
        scored(again),
        (*trained_on("ip_2", again, True), "model.init={rrhf_sp}/export"),
        *((f"rrhf_{name}", f"online_{name}") for name in ONLINE),
        *base.outputs_of("sft", *trained),
        ("rank_rrhf", "evaluate"),
        ("policies", "policies"),
    )
    results = "ranked={rank_rrhf}/per_instruction.parquet,policies={policies}/measures.json"
    base.compare(c, "rrhf_vs_ppo", results, {name: name for name in trained})
    return c
