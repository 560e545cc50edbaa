"""Reward model: Bradley-Terry on pairwise labels, starting from the SFT model.

    python -m rlhf_jax.main --config=configs/reward_model.py --workdir=runs/farm/reward_model

Reads any pairwise record; `--config=configs/reward_model.py:alpaca` has the sizes for real instruction text.

The papers' recipes, for eight accelerators, are variants too; what to download, and the result to compare with, stands
at each: `alpaca_farm`.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "alpaca": alpaca, "alpaca_farm": alpaca_farm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "reward_model"
    c.seed = 0

    c.data = ConfigDict()
    c.data.train = "runs/farm/labels/labels.parquet"  # Pairwise labels.
    c.data.train_rows = 0  # So many rows, drawn with the seed; 0 takes all.
    c.data.eval = ""  # Pairwise labels; "" holds out eval_rows of the training rows, by prompt.
    c.data.eval_rows = 300  # At most this many pairs, drawn with the seed.
    c.data.template = "brief"
    c.data.thoughts = "keep"  # With chat, of reasoning models: keep, drop, or last (those of the last turn).
    c.data.generation_prompt = (
        "template"  # Or training, sampling: which decides where chat texts meet prompts.
    )
    c.data.chat_template = ""  # With chat, which of a tokenizer's named templates; "": its default.
    c.data.date = ""  # What chat templates that ask for it are told, 2026-11-29; "": that of the first start.
    c.data.max_length = 56  # Tokens of prompt + response + end, of either side.
    c.data.too_long = (
        "drop"  # Longer pairs: drop, cut_response (no end then), or cut_prompt at its left, too.
    )
    c.data.not_ended = "keep"  # Responses with `ended` false: keep, without an end token, or drop.
    c.data.packing = False  # As many pairs as fit in one of twice max_length tokens; batch_size counts those.

    c.model = ConfigDict()
    c.model.init = "runs/farm/sft/export"  # The model whose trunk is trained further.
    c.model.adapter = ""  # A PEFT folder that is laid over init.
    # Where its score stands: eos (behind the response), last (the response's last token), template (the last token that
    # the chat template writes). "": where a reward model that is trained further has it, else eos.
    c.model.score_at = ""
    c.model.dtype = "float32"
    c.model.remat = "none"
    c.model.attention = "auto"  # Or xla, cudnn (NVIDIA), splash (TPU).

    c.lora = ConfigDict()  # Trains a low-rank adapter beside the model, which stays as it is.
    c.lora.rank = 0  # 0: all parameters are trained.
    c.lora.alpha = 16.0  # What the adapter adds is multiplied with alpha / rank.
    c.lora.targets = "all"  # Linear layers that have one: all, or some of q,k,v,o,gate,up,down.
    c.lora.base_dtype = "float32"  # Of the frozen weights; with dtype bfloat16, bfloat16 is as good.

    # After training, the mean score of these demonstrations is subtracted from every score (rule M8).
    c.center_on = "runs/farm/data/val.parquet"  # Instruction records; "" leaves scores as they are.
    c.center_rows = (
        256  # So many of them, drawn with the seed; those longer than data.max_length are left out.
    )

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
    c.optimizer.ema = 0.0  # Decay of an average of the parameters, evaluated and exported; 0: none.

    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.distributed = "auto"
    c.log_every = 10
    c.eval_every = 50
    c.save_every = 100
    c.keep_checkpoints = 2  # The last so many stay,
    c.keep_best = 1  # and, with best_metric, so many of the best.
    c.best_metric = ""  # Chooses the checkpoint that is exported, such as eval/loss; "": the last.
    c.best_mode = "min"  # min or max.
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


def alpaca_farm() -> ConfigDict:
    """AlpacaFarm's reward model of the simulated annotators ("sim"), from SFT 10k.

    hf download tatsu-lab/alpaca_farm --repo-type=dataset --local-dir=tatsu-lab/alpaca_farm
    python -m rlhf_jax.main --config=configs/sft.py:alpaca_farm --workdir=runs/alpaca_farm/sft

    Its accuracy on held-out pairs: users of AlpacaFarm's code report 56.6 to 60 % (a quarter of these labels is flipped
    on purpose, and annotators disagree). For the human labels, alpaca_human_preference.json, they reach 64 to 66 %, and
    the released model 73 %.
    """
    c = microfarm()
    c.seed = 42
    c.data.train = "tatsu-lab/alpaca_farm/alpaca_noisy_multi_preference.json"
    c.data.eval_rows = 500
    c.data.template = "alpaca"
    c.data.max_length = 512
    c.data.too_long = "cut_response"  # As AlpacaFarm does.
    c.model.init = "runs/alpaca_farm/sft/export"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.model.score_at = "last"  # As AlpacaFarm reads them, and as they come.
    c.center_on = ""
    c.batch_size = 16
    c.epochs = 1.0
    c.optimizer.learning_rate = 3e-6
    c.optimizer.warmup_steps = 18  # 3 % of 590 steps.
    c.optimizer.weight_decay = 0.0
    c.optimizer.b2 = 0.999
    c.mesh.fsdp = 8
    c.eval_every = 10
    return c
