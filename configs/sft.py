"""Supervised fine-tuning on demonstrations.

    python -m rlhf_jax.main --config=configs/sft.py --workdir=runs/farm/sft

Trains the embedded model from scratch on the embedded world's demonstrations; the farm page sizes it for two CPU
cores. `--config=configs/sft.py:alpaca` trains a small model from scratch on a real instruction file in the Stanford
Alpaca layout: give its path with --config.data.train=...; a part of it is held out unless --config.data.eval is set.

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
    c.job = "sft"
    c.seed = 0

    c.data = ConfigDict()
    c.data.train = "runs/farm/data/sft.parquet"  # Instruction records: instruction, input, output.
    c.data.train_rows = 0  # So many rows, drawn with the seed; 0 takes all.
    c.data.eval = "runs/farm/data/val.parquet"  # "" holds out eval_rows of the training rows instead.
    c.data.eval_rows = 256  # At most this many, drawn with the seed.
    c.data.template = "brief"  # A name in rlhf_jax/data/templates.py, or chat: the tokenizer's own.
    c.data.thoughts = "keep"  # With chat, of reasoning models: keep, drop, or last (those of the last turn).
    c.data.generation_prompt = (
        "template"  # Or training, sampling: which decides where chat texts meet prompts.
    )
    c.data.chat_template = ""  # With chat, which of a tokenizer's named templates; "": its default.
    c.data.date = ""  # What chat templates that ask for it are told, 2026-11-29; "": that of the first start.
    c.data.max_length = 56  # Tokens of prompt + response + end.
    c.data.too_long = (
        "cut_response"  # Longer rows: drop, cut_response (no end then), or cut_prompt at its left, too.
    )
    c.data.not_ended = "keep"  # Responses with `ended` false: keep, without an end token, or drop.
    c.data.packing = False  # As many rows as fit in one of max_length tokens; batch_size counts those.

    c.model = ConfigDict()
    c.model.init = (
        ""  # A Hugging Face folder or .gguf file to start from; "": from scratch with the shape below.
    )
    c.model.tokenizer = "runs/farm/data/tokenizer"  # Not read with init, which has its own.
    c.model.pad_token = ""  # Added if init's tokenizer has no PAD, e.g. [PAD]; starts as the mean row.
    c.model.vocab_size = 4096  # Of the tokenizer that is trained when none is named.
    c.model.width = 128
    c.model.layers = 3
    c.model.heads = 4
    c.model.kv_heads = 4
    c.model.ff = 344
    c.model.tie_embeddings = False
    c.model.adapter = ""  # A PEFT folder that is laid over init.
    c.model.dtype = "float32"  # Of matrix products: float32 or bfloat16.
    c.model.remat = "none"  # none, dots or full.
    c.model.attention = "auto"  # Or xla, cudnn (NVIDIA), splash (TPU).

    c.lora = ConfigDict()  # Trains a low-rank adapter beside the model, which stays as it is.
    c.lora.rank = 0  # 0: all parameters are trained.
    c.lora.alpha = 16.0  # What the adapter adds is multiplied with alpha / rank.
    c.lora.targets = "all"  # Linear layers that have one: all, or some of q,k,v,o,gate,up,down.
    c.lora.base_dtype = "float32"  # Of the frozen weights; with dtype bfloat16, bfloat16 is as good.

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
    c.optimizer.ema = 0.0  # Decay of an average of the parameters, evaluated and exported; 0: none.

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # One -1 takes what is left.
    c.distributed = "auto"  # auto, on or off.
    c.log_every = 10
    c.eval_every = 200
    c.save_every = 200
    c.keep_checkpoints = 2  # The last so many stay,
    c.keep_best = 1  # and, with best_metric, so many of the best.
    c.best_metric = ""  # Chooses the checkpoint that is exported, such as eval/loss; "": the last.
    c.best_mode = "min"  # min or max.
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


def alpaca_farm() -> ConfigDict:
    """AlpacaFarm's SFT 10k: LLaMA-7B on 10k demonstrations, the start of all its methods.

    hf download tatsu-lab/alpaca_farm --repo-type=dataset --local-dir=tatsu-lab/alpaca_farm
    hf download huggyllama/llama-7b --local-dir=huggyllama/llama-7b

    Result: win rate against text-davinci-003 of 36.7 ± 1.7 % (simulated annotators), 44.3 ± 1.7 % (humans), on 805
    instructions (Dubois et al. 2023, table 2). Without any training LLaMA-7B has 11.3 %.
    """
    c = microfarm()
    c.seed = 42
    c.data.train = "tatsu-lab/alpaca_farm/alpaca_instructions/sft.json"
    c.data.eval = "tatsu-lab/alpaca_farm/alpaca_instructions/val.json"
    c.data.eval_rows = 2000
    c.data.template = "alpaca"
    c.data.max_length = 512
    c.model.init = "huggyllama/llama-7b"
    c.model.pad_token = "[PAD]"  # It has none; AlpacaFarm adds this one, at the mean embedding.
    c.model.dtype = "bfloat16"  # Over float32 weights, as theirs.
    c.model.remat = "full"
    c.batch_size = 128
    c.microbatches = 4
    c.epochs = 3.0
    c.optimizer.learning_rate = 2e-5
    c.optimizer.warmup_steps = 8  # 3 % of 235 steps.
    c.optimizer.b2 = 0.999
    c.mesh.fsdp = 8
    c.eval_every = 100
    c.save_every = 100
    return c


def dpo_rlaif_mistral7b() -> ConfigDict:
    """dpo-rlaif's SFT of Mistral-7B on the first tenth of ShareGPT, with GPT-3.5's answers.

    hf download mistralai/Mistral-7B-v0.1 --local-dir=mistralai/Mistral-7B-v0.1
    hf download TRI-ML/dpo-rlaif-data ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json \\
        --repo-type=dataset --local-dir=TRI-ML/dpo-rlaif-data
    jq -c '.[:(length / 10 | floor)][] | .conversations | select(.[0].from == "human" and .[1].from == "gpt")
        | {instruction: .[0].value, output: .[1].value}' \\
        TRI-ML/dpo-rlaif-data/ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json > TRI-ML/dpo-rlaif-data/tenth.jsonl

    Result: AlpacaEval win rate against text-davinci-003, judged by GPT-4, of 55.1 % (standard error 1.5 to 1.8); 56.8 %
    with all of ShareGPT, 75.3 % with GPT-4's answers (Sharma et al. 2024, figure 2). Other models of the figure are
    other values of model.init: 10 % gives LLaMA-7B 42.6 %, Yi-6B 49.0 %, LLaMA2-13B 58.5 %.
    """
    c = microfarm()
    c.data.train = "TRI-ML/dpo-rlaif-data/tenth.jsonl"
    c.data.eval = ""  # Theirs is a part of the training prompts.
    c.data.eval_rows = 64
    c.data.template = "human_assistant"  # With the BOS that their code leaves out.
    c.data.max_length = 512
    c.data.too_long = "cut_prompt"  # To 256 tokens, then responses, as they do.
    c.model.init = "mistralai/Mistral-7B-v0.1"
    c.model.pad_token = "[PAD]"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.batch_size = 8
    c.epochs = 9.0  # They look at epochs 3, 6 and 9, and at rates of 1e-7, 5e-7 and 1e-6, and keep the best.
    # Their loss is a response's sum and not the mean over tokens: long responses count for more.
    c.optimizer.name = "rmsprop"
    c.optimizer.b1 = 0.0
    c.optimizer.b2 = 0.99
    c.optimizer.learning_rate = 1e-6
    c.optimizer.schedule = "constant"
    c.optimizer.warmup_steps = 0
    c.optimizer.max_grad_norm = 10.0
    c.mesh.fsdp = 8
    c.eval_every = 625  # 5000 examples.
    c.save_every = 625
    return c
