"""Direct preference optimisation on pairwise labels, starting from and anchored to the SFT model.

    python -m rlhf_jax.main --config=configs/dpo.py --workdir=runs/farm/dpo

Reference log-probs are computed once, before the first step, and kept on disk: other runs on the same pairs from the
same model (another beta, another learning rate) read them.

The papers' recipes, for eight accelerators, are variants too; what to download, and the result to compare with, stands
at each: `alpaca_farm`, `dpo_rlaif_mistral7b`.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant,
        {
            "microfarm": microfarm,
            "alpaca": alpaca,
            "alpaca_farm": alpaca_farm,
            "dpo_rlaif_mistral7b": dpo_rlaif_mistral7b,
        },
    )


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
    c.model.init = "runs/farm/sft/export"  # Policy at step 0, and the frozen reference.
    c.model.adapter = ""  # A PEFT folder that is laid over init.
    c.model.dtype = "float32"
    c.model.remat = "none"
    c.model.attention = "auto"  # Or xla, cudnn (NVIDIA), splash (TPU).

    c.reference = "cached"  # Log-probs computed once, kept on disk; or step: a second model in memory.
    c.reference_cache = ""  # Folder of what is kept; "" is rlhf_jax/reference in the user's cache folder.

    c.lora = ConfigDict()  # Trains a low-rank adapter beside the model, which stays as it is.
    c.lora.rank = 0  # 0: all parameters are trained.
    c.lora.alpha = 16.0  # What the adapter adds is multiplied with alpha / rank.
    c.lora.targets = "all"  # Linear layers that have one: all, or some of q,k,v,o,gate,up,down.
    c.lora.base_dtype = "float32"  # Of the frozen weights; with dtype bfloat16, bfloat16 is as good.

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
    c.optimizer.ema = 0.0  # Decay of an average of the parameters, evaluated and exported; 0: none.

    c.logprob_chunk = 128
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.distributed = "auto"
    c.log_every = 10
    c.eval_every = 150
    c.save_every = 150
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
    c.batch_size = 8
    c.epochs = 1.0
    c.optimizer.learning_rate = 2e-5
    return c


def alpaca_farm() -> ConfigDict:
    """AlpacaFarm's DPO on the labels of its simulated annotators, from SFT 10k.

    hf download tatsu-lab/alpaca_farm --repo-type=dataset --local-dir=tatsu-lab/alpaca_farm
    python -m rlhf_jax.main --config=configs/sft.py:alpaca_farm --workdir=runs/alpaca_farm/sft

    Result: win rate against text-davinci-003 of 46.8 ± 1.7 % by the simulated annotators, as high as PPO's; SFT 10k has
    36.7 % (Dubois et al. 2023, table 2 of version 4).
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
    c.beta = 0.1
    c.batch_size = 64
    c.microbatches = 4
    c.epochs = 2.0
    c.optimizer.learning_rate = 1e-6
    c.optimizer.warmup_steps = 9  # 3 % of 300 steps.
    c.optimizer.b2 = 0.999
    c.mesh.fsdp = 8
    c.eval_every = 100
    return c


def dpo_rlaif_mistral7b() -> ConfigDict:
    """dpo-rlaif's DPO of Mistral-7B on GPT-4's preferences between its own samples and GPT-3.5's answers.

    hf download TRI-ML/dpo-rlaif-data comparisons_gpt4/mistral7bsft_vs_chatgpt/annotations.json \\
        --repo-type=dataset --local-dir=TRI-ML/dpo-rlaif-data
    python -m rlhf_jax.main --config=configs/sft.py:dpo_rlaif_mistral7b --workdir=runs/dpo_rlaif_mistral7b/sft

    Result: AlpacaEval win rate against text-davinci-003, judged by GPT-4, of 71.1 % (standard error 1.5 to 1.8), from
    55.1 % after SFT; below SFT on GPT-4's answers, 75.3 % (Sharma et al. 2024, figure 2). The same on other models:
    LLaMA-7B 47.6 %, DeepSeek-7B 57.5 %, Yi-6B 59.6 %, LLaMA2-13B 65.1 %, Mixtral-8x7B 72.8 %. On 8 A100 it took 2 h 45.
    """
    c = microfarm()
    # Draws, which their code takes for wins of the second output, are dropped here.
    c.data.train = "TRI-ML/dpo-rlaif-data/comparisons_gpt4/mistral7bsft_vs_chatgpt/annotations.json"
    c.data.eval_rows = 64
    c.data.template = "human_assistant"  # With the BOS that their code leaves out.
    c.data.max_length = 512
    c.data.too_long = "cut_prompt"  # To 256 tokens, then responses, as they do.
    c.model.init = "runs/dpo_rlaif_mistral7b/sft/export"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.beta = 0.05
    c.batch_size = 8
    c.epochs = 3.0
    c.optimizer.name = "rmsprop"
    c.optimizer.b1 = 0.0
    c.optimizer.b2 = 0.99
    c.optimizer.learning_rate = 1e-7  # The default of their code; the README's command does not change it.
    c.optimizer.schedule = "constant"
    c.optimizer.warmup_steps = 0
    c.optimizer.max_grad_norm = 10.0
    c.mesh.fsdp = 8
    c.eval_every = 625  # 5000 examples.
    c.save_every = 625
    return c
