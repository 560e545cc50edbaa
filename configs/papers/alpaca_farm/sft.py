"""AlpacaFarm's SFT 10k: LLaMA-7B on 10k demonstrations, the start of all its methods.

    hf download tatsu-lab/alpaca_farm --repo-type=dataset --local-dir=tatsu-lab/alpaca_farm
    hf download huggyllama/llama-7b --local-dir=huggyllama/llama-7b
    python -m rlhf_jax.main --config=configs/papers/alpaca_farm/sft.py --workdir=runs/alpaca_farm/sft

Hardware: eight accelerators of 80 GB (theirs: A100; four are enough for SFT and reward model, says their README).
A step plans 21 GiB on each, as compiled for CPUs; for H100 18 GiB.
Time: they publish none; not run to its end here.
Result: win rate against text-davinci-003 of 36.7 ± 1.7 % (simulated annotators), 44.3 ± 1.7 % (humans), on 805
instructions (Dubois et al. 2023, table 2). Without any training LLaMA-7B has 11.3 %.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import sibling


def get_config() -> ConfigDict:
    c = sibling(__file__, "../../sft")
    c.seed = 42
    c.data.train = "tatsu-lab/alpaca_farm/alpaca_instructions/sft.json"
    c.data.eval = "tatsu-lab/alpaca_farm/alpaca_instructions/val.json"
    c.data.eval_rows = 2000
    c.data.template = "alpaca"
    c.data.max_length = 512
    c.model.init = "huggyllama/llama-7b"
    c.model.pad_token = "[PAD]"  # It has none; AlpacaFarm adds this one, at the mean embedding.
    c.model.dtype = "bfloat16"  # Over float32 weights, as theirs.
    c.model.remat = "full"
    c.batch_size = 128
    c.epochs = 3.0
    c.optimizer.learning_rate = 2e-5
    c.optimizer.warmup_steps = 8  # 3 % of 235 steps.
    c.optimizer.b2 = 0.999
    c.mesh.fsdp = 8
    c.eval_every = 100
    c.save_every = 100
    return c
