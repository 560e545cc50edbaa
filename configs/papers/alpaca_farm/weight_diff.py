"""AlpacaFarm's released models, from their differences to LLaMA-7B: here sft10k.

    hf download tatsu-lab/alpaca-farm-sft10k-wdiff --local-dir=tatsu-lab/alpaca-farm-sft10k-wdiff
    python -m rlhf_jax.main --config=configs/papers/alpaca_farm/weight_diff.py --workdir=runs/alpaca_farm/sft10k \\
        --config.base=llama-7b

LLaMA-7B is to be had from Meta; set `--config.base`. ppo-human, expiter-sim and the others go on the same base;
the reward models go on the recovered sft10k and come out as sequence classifiers, ready for configs/ppo.py.

Hardware: no accelerator; tensors are read one at a time. Time: no figure is known.
Result: the sum of all weights is that of model_sum.txt beside the difference, or the job says so. The win rates to
compare the models' outputs with stand at the other pages of this folder.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import sibling


def get_config() -> ConfigDict:
    c = sibling(__file__, "../../weight_diff")
    c.base = "llama-7b"
    c.target = ""
    c.diff = "tatsu-lab/alpaca-farm-sft10k-wdiff"
    return c
