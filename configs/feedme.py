"""Binary FeedME: supervised fine-tuning goes on with the response that was preferred of each labelled pair.

    python -m rlhf_jax.main --config=configs/feedme.py --workdir=runs/farm/feedme

What all trainers share stands in configs/common.py. The paper gives no settings; it is SFT's recipe with less of it.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "feedme"
    c.seed = 0  # Of the rows that are drawn, and their order.

    c.data = ConfigDict()
    c.data.train = "runs/farm/labels/labels.parquet"  # Pairwise labels.
    c.data.eval = ""  # Pairwise labels; "" holds out eval_rows of the training rows, by prompt.
    c.data.eval_rows = 300  # At most this many pairs, drawn with the seed; all their responses.
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
    c.model.init = "runs/farm/sft/export"  # The model that is trained further.
    common.trained_model(c.model)

    common.lora(c)

    c.batch_size = 32  # Responses per step, over all devices.
    c.epochs = 1.0  # Passes over the responses; may be a part of one.
    common.optimizer(c, learning_rate=2e-4, warmup_steps=10)

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=10, eval_every=150, save_every=150)
    common.sampled_win_rate(c, max_prompt_length=36, max_new_tokens=28)
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
