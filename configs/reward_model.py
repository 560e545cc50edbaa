"""Reward model: Bradley-Terry on pairwise labels, starting from the SFT model.

    python -m rlhf_jax.main --config=configs/reward_model.py --workdir=runs/farm/reward_model

Reads any pairwise record; `--config=configs/reward_model.py:alpaca` has the sizes for real instruction text.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "reward_model"
    c.seed = 0

    c.data = ConfigDict()
    c.data.train = "runs/farm/labels/labels.parquet"  # Pairwise labels.
    c.data.train_rows = 0  # So many rows, drawn with the seed; 0 takes all.
    c.data.eval = ""  # Pairwise labels; "" holds out eval_rows of the training rows, by prompt.
    c.data.eval_rows = 300  # At most this many pairs.
    c.data.template = "brief"
    c.data.max_length = 56  # Pairs with a longer side are dropped and counted.

    c.model = ConfigDict()
    c.model.init = "runs/farm/sft/export"  # The model whose trunk is trained further.
    c.model.dtype = "float32"
    c.model.remat = "none"

    # After training, the mean score of these demonstrations is subtracted from every score (rule M8).
    c.center_on = "runs/farm/data/val.parquet"  # Instruction records; "" leaves scores as they are.
    c.center_rows = 256

    c.batch_size = 64  # Pairs per step.
    c.microbatches = 1
    c.epochs = 0.6  # Of the 20k pairs that the farm page makes.

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 3e-4
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 10
    c.optimizer.weight_decay = 0.01
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.98
    c.optimizer.eps = 1e-8
    c.optimizer.max_grad_norm = 1.0
    c.optimizer.ema = (
        0.0  # Decay of an average of the parameters, which is then evaluated and exported; 0: none.
    )

    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.distributed = "auto"
    c.log_every = 10
    c.eval_every = 50
    c.save_every = 100
    c.tensorboard = False
    c.wandb_project = ""
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
