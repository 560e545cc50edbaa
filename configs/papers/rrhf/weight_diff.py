"""Wombat-7B, RRHF's chat model, from its difference to LLaMA-7B; Vicuna's differences have the same format.

    hf download GanjinZero/wombat-7b-delta --local-dir=GanjinZero/wombat-7b-delta
    python -m rlhf_jax.main --config=configs/papers/rrhf/weight_diff.py --workdir=runs/rrhf/wombat \\
        --config.base=llama-7b

LLaMA-7B is to be had from Meta; set `--config.base`.

Hardware: no accelerator; tensors are read one at a time. Time: no figure is known.
Result: on Vicuna's 80 questions GPT-4 gives Wombat-7B 616 points and Alpaca-7B 567, ChatGPT 669 and Wombat-7B 548 (Yuan
et al. 2023).
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import sibling


def get_config() -> ConfigDict:
    c = sibling(__file__, "../../weight_diff")
    c.base = "llama-7b"
    c.target = ""
    c.diff = "GanjinZero/wombat-7b-delta"
    c.new_rows = "zero"
    c.dtype = "float16"
    return c
