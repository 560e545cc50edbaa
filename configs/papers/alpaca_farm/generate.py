"""AlpacaFarm's outputs for evaluation: one sample for each of its 805 instructions.

    hf download tatsu-lab/alpaca_farm --repo-type=dataset --local-dir=tatsu-lab/alpaca_farm
    python -m rlhf_jax.main --config=configs/papers/alpaca_farm/generate.py --workdir=runs/alpaca_farm/outputs/ppo

Hardware: eight accelerators; the model is 13 GB in bfloat16.
Time: they publish none; not run to its end here.
Result: lengths to compare with, in characters (AlpacaEval's leaderboard): PPO on human labels 803, Alpaca-7B 396. The
win rates stand at sft.py, dpo.py and ppo.py of this folder.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import sibling


def get_config() -> ConfigDict:
    c = sibling(__file__, "../../generate")
    c.model.path = "runs/alpaca_farm/ppo/export"
    c.model.name = "ppo"
    c.model.dtype = "bfloat16"
    c.data.prompts = "tatsu-lab/alpaca_farm/eval.json"
    c.data.template = "alpaca"
    c.data.max_prompt_length = 1024  # Longer ones are dropped and counted; AlpacaFarm takes any.
    c.batch_size = 64
    c.max_new_tokens = 300
    c.temperature = 0.7
    c.top_p = 0.9  # The paper names only the temperature; this is the default of its code.
    c.mesh.fsdp = 8
    return c
