"""Scores responses with a reward model, or with a language model by how likely it finds them.

    python -m rlhf_jax.main --config=configs/score.py --workdir=runs/farm/scores

Writes scores.parquet: the prompt's columns, responses, scores, reasons (lists of equal length). A response that cannot
be scored (too long, no text, a prompt that is missing) has a null score, and reasons says why; they are counted.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "score"

    c.model = ConfigDict()
    c.model.path = "runs/farm/reward_model/export"  # As model.path of configs/generate.py, with a score head.
    # reward, or logprob: that of a response by a language model, divided by its tokens (a policy as a reward model).
    c.model.score_by = "reward"
    # Where its score stands: eos (behind the response), last (the response's last token), template (the last token that
    # the chat template writes). "": as its config.json says, else template for chat and eos for others.
    c.model.score_at = ""
    common.read_model(c.model)
    common.read_rewards(c.model)

    c.data = ConfigDict()
    c.data.responses = "runs/farm/val_pairs/outputs.parquet"  # Demonstrations, lists in outputs, or pairs.
    c.data.rows = 0  # The first rows only; 0 takes all.
    c.data.max_length = 72  # Tokens of prompt + response + end.
    # Longer rows: drop (a null score), cut_response, or cut_prompt at its left, too.
    c.data.too_long = "drop"
    common.texts(c.data)
    common.responses(c.data)

    c.batch_size = 256  # Responses at a time, over all devices.
    common.devices(c)
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.model.path = "runs/alpaca/reward_model/export"
    c.data.template = "alpaca"
    c.data.max_length = 768
    c.batch_size = 16
    return c
