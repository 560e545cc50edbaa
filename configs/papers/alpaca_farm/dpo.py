"""AlpacaFarm's DPO on the labels of its simulated annotators, from SFT 10k.

    hf download tatsu-lab/alpaca_farm --repo-type=dataset --local-dir=tatsu-lab/alpaca_farm
    python -m rlhf_jax.main --config=configs/papers/alpaca_farm/sft.py --workdir=runs/alpaca_farm/sft
    python -m rlhf_jax.main --config=configs/papers/alpaca_farm/dpo.py --workdir=runs/alpaca_farm/dpo

Hardware: eight accelerators of 80 GB (theirs: A100).
A step plans 21 GiB on each, as compiled for CPUs.
Time: they publish none; not run to its end here.
Result: win rate against text-davinci-003 of 46.8 ± 1.7 % by the simulated annotators, as high as PPO's; SFT 10k has
36.7 % (Dubois et al. 2023, table 2 of version 4).
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import sibling


def get_config() -> ConfigDict:
    c = sibling(__file__, "../../dpo")
    c.seed = 42
    c.data.train = "tatsu-lab/alpaca_farm/alpaca_noisy_multi_preference.json"
    c.data.eval_rows = 500
    c.data.template = "alpaca"
    c.data.max_length = 512
    c.data.too_long = "cut_response"  # As AlpacaFarm does.
    c.model.init = "runs/alpaca_farm/sft/export"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.beta = 0.1
    c.batch_size = 64
    c.epochs = 2.0
    c.optimizer.learning_rate = 1e-6
    c.optimizer.warmup_steps = 9  # 3 % of 300 steps.
    c.optimizer.b2 = 0.999
    c.mesh.fsdp = 8
    c.eval_every = 100
    return c
