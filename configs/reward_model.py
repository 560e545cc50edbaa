"""Reward model: Bradley-Terry on pairwise labels, starting from the SFT model.

    python -m rlhf_jax.main --config=configs/reward_model.py --workdir=runs/farm/reward_model

Reads any pairwise record; `--config=configs/reward_model.py:alpaca` has the sizes for real instruction text.

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "reward_model"
    c.seed = 0  # Of the rows that are drawn, their order, and the score head.

    c.data = ConfigDict()
    c.data.train = "runs/farm/labels/labels.parquet"  # Pairwise labels.
    c.data.eval = ""  # Pairwise labels; "" holds out eval_rows of the training rows, by prompt.
    c.data.eval_rows = 300  # At most this many pairs, drawn with the seed.
    c.data.max_length = 56  # Tokens of prompt + response + end, of either side.
    # Longer pairs: drop, cut_response (no end then), or cut_prompt at its left, too.
    c.data.too_long = "drop"
    c.data.packing = False  # As many pairs as fit in one of twice max_length tokens; batch_size counts those.
    common.training_rows(c.data)
    common.texts(c.data)
    common.responses(c.data)

    c.model = ConfigDict()
    c.model.init = "runs/farm/sft/export"  # The model whose trunk is trained further.
    # Where its score stands: eos (behind the response), last (the response's last token), template (the last token that
    # the chat template writes). "": where a reward model that is trained further has it, else eos.
    c.model.score_at = ""
    common.trained_model(c.model)

    common.lora(c)

    # After training, the mean score of these demonstrations is subtracted from every score: its zero is arbitrary.
    c.center_on = "runs/farm/data/val.parquet"  # Instruction records; "" leaves scores as they are.
    c.center_rows = 256  # So many, drawn with the seed; those longer than data.max_length are left out.

    c.batch_size = 64  # Pairs per step, over all devices.
    c.epochs = 0.6  # Of the 20k pairs that the farm page makes.
    common.optimizer(c, learning_rate=3e-4, warmup_steps=10)
    c.optimizer.weight_decay = 0.01

    common.devices(c)
    common.rhythm(c, log_every=10, eval_every=50, save_every=100)
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.data.train = "labels.parquet"
    c.data.template = "alpaca"
    c.data.max_length = 768
    c.model.init = "runs/alpaca/sft/export"
    c.center_on = ""
    c.batch_size = 8
    c.epochs = 1.0
    c.optimizer.learning_rate = 1e-4
    return c
