"""Makes a model's difference from its base, for publishing where copies of the base are not allowed; or recovers it.

    python -m rlhf_jax.main --config=configs/weight_diff.py --workdir=runs/farm/dpo_diff

Writes diff/: that of the DPO model from the SFT model, and model_sum.txt, by which a wrong base is found out. With
`--config.diff=FOLDER --config.target=` it goes back and writes export/, a Hugging Face folder.

configs/papers/alpaca_farm/weight_diff.py recovers one of AlpacaFarm's models, configs/papers/rrhf/weight_diff.py
Wombat or Vicuna.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "weight_diff"
    c.base = "runs/farm/sft/export"  # The folder of the base model.
    c.target = "runs/farm/dpo/export"  # The model to make the difference of,
    c.diff = ""  # or the difference to recover the model from; one of the two.
    c.new_rows = "mean"  # The base's embedding of a token it does not have: mean (of its rows) or zero.
    c.dtype = "float32"  # Of the recovered weights: float32, float16 or bfloat16. A difference is float32.
    return c
