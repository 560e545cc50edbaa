"""SLiC-HF on pairwise labels.

python -m rlhf_jax.main --config=configs/slic.py --workdir=runs/farm/slic
"""

from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

# A page in configs/ says module_beside(__file__, "common").
common = module_beside(str(Path(__file__).parents[2] / "configs" / "slic.py"), "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "slic"
    c.seed = 0

    c.data = ConfigDict()
    c.data.train = "runs/farm/labels/labels.parquet"  # Pairwise labels.
    c.data.eval = ""  # Pairwise labels; "" holds out eval_rows of the training rows, by prompt.
    c.data.eval_rows = 300
    c.data.max_length = 56  # Tokens of prompt + response + end, of either side.
    c.data.too_long = "drop"
    c.data.packing = "off"
    common.training_rows(c.data)
    common.texts(c.data)
    common.responses(c.data)

    c.model = ConfigDict()
    c.model.init = "runs/farm/sft/export"
    common.trained_model(c.model)
    common.lora(c)

    c.margin = 1.0  # In nats of a whole response.
    c.batch_size = 32
    c.epochs = 1.0
    common.optimizer(c, learning_rate=2e-4, warmup_steps=10)
    c.logprob_chunk = 128
    common.devices(c)
    common.rhythm(c, log_every=10, eval_every=150, save_every=150)
    return c
