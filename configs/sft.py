"""Supervised fine-tuning on demonstrations.

    python -m rlhf_jax.main --config=configs/sft.py --workdir=runs/farm/sft

Trains the embedded model from scratch on the embedded world's demonstrations; the farm page sizes it for two CPU
cores. `--config=configs/sft.py:alpaca` trains a small model from scratch on a real instruction file in the Stanford
Alpaca layout: give its path with --config.data.train=...; a part of it is held out unless --config.data.eval is set.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "sft"
    c.seed = 0

    c.data = ConfigDict()
    c.data.train = "runs/farm/data/sft.parquet"  # Instruction records: instruction, input, output.
    c.data.train_rows = 0  # So many rows, drawn with the seed; 0 takes all.
    c.data.eval = "runs/farm/data/val.parquet"  # "" holds out eval_rows of the training rows instead.
    c.data.eval_rows = 256  # At most this many.
    c.data.template = "brief"  # A name in rlhf_jax/data/templates.py, or chat: the tokenizer's own.
    c.data.max_length = 56  # Tokens of prompt + response + end; longer prompts are dropped, responses cut.

    c.model = ConfigDict()
    c.model.init = ""  # A Hugging Face folder to start from; "" starts from scratch with the shape below.
    c.model.tokenizer = "runs/farm/data/tokenizer"  # Not read with init, which has its own.
    c.model.vocab_size = 4096  # Of the tokenizer that is trained when none is named.
    c.model.width = 128
    c.model.layers = 3
    c.model.heads = 4
    c.model.kv_heads = 4
    c.model.ff = 344
    c.model.tie_embeddings = False
    c.model.dtype = "float32"  # Of matrix products: float32 or bfloat16.
    c.model.remat = "none"  # none, dots or full.

    c.batch_size = 16  # Sequences per step, over all devices.
    c.microbatches = 1  # Gradient accumulation; divides the batch of each device.
    c.epochs = 5.0

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw, adamw_tf, adafactor, rmsprop, lion or sgd.
    c.optimizer.learning_rate = 2e-3
    c.optimizer.schedule = "cosine"  # constant, linear, cosine or inverse_sqrt.
    c.optimizer.warmup_steps = 30
    c.optimizer.weight_decay = 0.0
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.98
    c.optimizer.eps = 1e-8
    c.optimizer.max_grad_norm = 1.0
    c.optimizer.ema = (
        0.0  # Decay of an average of the parameters, which is then evaluated and exported; 0: none.
    )

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # One -1 takes what is left.
    c.distributed = "auto"  # auto, on or off.
    c.log_every = 10
    c.eval_every = 200
    c.save_every = 200
    c.tensorboard = False
    c.wandb_project = ""
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.data.train = "alpaca_data.json"
    c.data.eval = ""
    c.data.template = "alpaca"
    c.data.max_length = 192
    c.model.tokenizer = ""  # "" trains one on the training text, into the workdir.
    c.model.width = 256
    c.model.heads = 8
    c.model.kv_heads = 8
    c.model.ff = 688
    c.batch_size = 16
    c.epochs = 1.0
    c.optimizer.learning_rate = 1e-3
    return c
