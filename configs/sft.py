"""Supervised fine-tuning on demonstrations.

    python -m rlhf_jax.main --config=configs/sft.py --workdir=runs/farm/sft

Trains the embedded model from scratch on the embedded world's demonstrations; the farm page sizes it for two CPU
cores. `--config=configs/sft.py:alpaca` trains a small model from scratch on a real instruction file in the Stanford
Alpaca layout: give its path with --config.data.train=...; a part of it is held out unless --config.data.eval is set.

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "sft"
    c.seed = 0  # Of the rows that are drawn, their order, and the first parameters.

    c.data = ConfigDict()
    c.data.train = "runs/farm/data/sft.parquet"  # Instruction records: instruction, input, output.
    c.data.eval = "runs/farm/data/val.parquet"  # "" holds out eval_rows of the training rows instead.
    c.data.eval_rows = 256  # At most this many, drawn with the seed.
    c.data.max_length = 56  # Tokens of prompt + response + end.
    # Longer rows: drop, cut_response (no end then), or cut_prompt at its left, too.
    c.data.too_long = "cut_response"
    # auto: each step's batch_size rows share array rows where that saves enough; off: a row has its own; on: as many
    # as fit share one of max_length tokens, and batch_size counts those.
    c.data.packing = "auto"
    common.training_rows(c.data)
    common.texts(c.data)
    common.responses(c.data)

    c.model = ConfigDict()
    # A Hugging Face folder or .gguf file to start from; "": from scratch with the shape below.
    c.model.init = ""
    c.model.tokenizer = "runs/farm/data/tokenizer"  # Not read with init, which has its own.
    c.model.pad_token = ""  # Added if init's tokenizer has no PAD, e.g. [PAD]; starts as the mean row.
    c.model.vocab_size = 4096  # Of the tokenizer that is trained when none is named.
    c.model.width = 128  # Of the hidden states.
    c.model.layers = 3  # Of attention and feed-forward, one after the other.
    c.model.heads = 4  # Of queries; they share the width.
    c.model.kv_heads = 4  # Of keys and values; divides heads.
    c.model.ff = 344  # Width of the feed-forward layers.
    c.model.tie_embeddings = False  # Whether the output matrix is the embeddings' own.
    common.trained_model(c.model)

    common.lora(c)

    c.batch_size = 16  # Sequences per step, over all devices.
    c.epochs = 5.0  # Passes over the training rows; may be a part of one.
    common.optimizer(c, learning_rate=2e-3, warmup_steps=30)

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=10, eval_every=200, save_every=200)
    common.sampled_win_rate(c, max_prompt_length=36, max_new_tokens=28)
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
