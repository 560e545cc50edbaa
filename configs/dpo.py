"""Direct preference optimisation on pairwise labels, starting from and anchored to the SFT model.

    python -m rlhf_jax.main --config=configs/dpo.py --workdir=runs/farm/dpo

Reference log-probs are computed once, before the first step.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "dpo"
    c.seed = 0

    c.data = ConfigDict()
    c.data.train = "runs/farm/labels/labels.parquet"  # Pairwise labels.
    c.data.train_rows = 0  # So many rows, drawn with the seed; 0 takes all.
    c.data.eval = ""  # Pairwise labels; "" holds out eval_rows of the training rows, by prompt.
    c.data.eval_rows = 300
    c.data.template = "brief"
    c.data.max_length = 56  # Pairs with a longer side are dropped and counted.

    c.model = ConfigDict()
    c.model.init = "runs/farm/sft/export"  # Policy at step 0, and the frozen reference.
    c.model.dtype = "float32"
    c.model.remat = "none"

    c.beta = 0.05  # Strength of the pull towards the reference.
    c.label_smoothing = 0.0  # Assumed share of flipped labels (conservative DPO); 0 is plain DPO.

    c.batch_size = 32  # Pairs per step.
    c.microbatches = 1
    c.epochs = 1.0

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 2e-4
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 10
    c.optimizer.weight_decay = 0.0
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.98
    c.optimizer.eps = 1e-8
    c.optimizer.max_grad_norm = 1.0
    c.optimizer.ema = (
        0.0  # Decay of an average of the parameters, which is then evaluated and exported; 0: none.
    )

    c.logprob_chunk = 128
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.distributed = "auto"
    c.log_every = 10
    c.eval_every = 150
    c.save_every = 150
    c.tensorboard = False
    c.wandb_project = ""
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.data.train = "labels.parquet"
    c.data.template = "alpaca"
    c.data.max_length = 768
    c.model.init = "runs/alpaca/sft/export"
    c.batch_size = 8
    c.epochs = 1.0
    c.optimizer.learning_rate = 2e-5
    return c
