"""Scores responses with a reward model.

    python -m rlhf_jax.main --config=configs/score.py --workdir=runs/farm/scores

Writes scores.parquet: the prompt's columns, responses, scores, reasons (lists of equal length). A response that cannot
be scored (too long, no text, a prompt that is missing) has a null score, and reasons says why; they are counted.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "score"

    c.model = ConfigDict()
    c.model.path = "runs/farm/reward_model/export"
    c.model.adapter = ""  # A PEFT folder that is laid over it.
    # Where its score stands: eos (behind the response), last (the response's last token), template (the last token that
    # the chat template writes). "": as its config.json says, else template for chat and eos for others.
    c.model.score_at = ""
    c.model.dtype = "float32"

    c.data = ConfigDict()
    c.data.responses = "runs/farm/val_pairs/outputs.parquet"  # Demonstrations, lists in outputs, or pairs.
    c.data.template = "brief"
    c.data.thoughts = "keep"  # With chat, of reasoning models: keep, drop, or last (those of the last turn).
    c.data.generation_prompt = (
        "template"  # Or training, sampling: which decides where chat texts meet prompts.
    )
    c.data.chat_template = ""  # With chat, which of a tokenizer's named templates; "": its default.
    c.data.date = ""  # What chat templates that ask for it are told, 2026-11-29; "": that of the first start.
    c.data.max_length = 72
    c.data.not_ended = "keep"  # Responses with `ended` false: keep, without an end token, or drop.
    c.data.too_long = (
        "drop"  # Longer rows: drop (a null score), cut_response, or cut_prompt at its left, too.
    )

    c.batch_size = 256  # Responses at a time, over all devices.
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.distributed = "auto"
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.model.path = "runs/alpaca/reward_model/export"
    c.data.template = "alpaca"
    c.data.max_length = 768
    c.batch_size = 16
    return c
