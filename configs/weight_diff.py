"""Makes a model's difference from its base, for publishing where copies of the base are not allowed; or recovers it.

    python -m rlhf_jax.main --config=configs/weight_diff.py --workdir=runs/farm/dpo_diff

Writes diff/: that of the DPO model from the SFT model, and model_sum.txt, by which a wrong base is found out. With
`--config.diff=FOLDER --config.target=` it goes back and writes export/, a Hugging Face folder.

`:alpaca_farm` recovers one of AlpacaFarm's models, `:wombat` one of Wombat's or Vicuna's.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca_farm": alpaca_farm, "wombat": wombat})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "weight_diff"
    c.base = "runs/farm/sft/export"  # The folder of the base model.
    c.target = "runs/farm/dpo/export"  # The model to make the difference of,
    c.diff = ""  # or the difference to recover the model from; one of the two.
    c.new_rows = "mean"  # The base's embedding of a token it does not have: mean (of its rows) or zero.
    c.dtype = "float32"  # Of the recovered weights: float32, float16 or bfloat16. A difference is float32.
    return c


def alpaca_farm() -> ConfigDict:
    """AlpacaFarm's sft10k on LLaMA-7B.

    hf download tatsu-lab/alpaca-farm-sft10k-wdiff --local-dir=tatsu-lab/alpaca-farm-sft10k-wdiff

    LLaMA-7B is to be had from Meta; set `--config.base`. ppo-human, expiter-sim and the others go on the same base;
    the reward models go on the recovered sft10k and come out as sequence classifiers, ready for configs/ppo.py.
    """
    c = microfarm()
    c.base = "llama-7b"
    c.target = ""
    c.diff = "tatsu-lab/alpaca-farm-sft10k-wdiff"
    return c


def wombat() -> ConfigDict:
    """Wombat-7B on LLaMA-7B.

    hf download GanjinZero/wombat-7b-delta --local-dir=GanjinZero/wombat-7b-delta
    """
    c = alpaca_farm()
    c.diff = "GanjinZero/wombat-7b-delta"
    c.new_rows = "zero"
    c.dtype = "float16"
    return c
