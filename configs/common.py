"""What the pages share, written once: functions that each put a group of settings into a page.

    common = module_beside(__file__, "common")      # in a page; it comes from rlhf_jax.settings

    c = ConfigDict()
    common.optimizer(c, learning_rate=1e-4, warmup_steps=10)
    c.optimizer.b2 = 0.95                           # what this page has otherwise

This file is no page itself. `--config=configs/NAME.py --help` shows every field of a page with its comment, those of
this file too. A page of your own, in any folder, gets at it by the same line.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def texts(data: ConfigDict) -> None:
    """How a record becomes text."""
    data.template = "brief"  # A name in rlhf_jax/data/templates.py, or chat: the tokenizer's own.
    data.thoughts = "keep"  # With chat, of reasoning models: keep, drop, or last (those of the last turn).
    data.generation_prompt = "template"  # Or training, sampling: which decides where chat texts meet prompts.
    data.chat_template = ""  # With chat, which of a tokenizer's named templates; "": its default.
    data.date = ""  # What chat templates that ask for it are told, 2026-11-29; "": that of the first start.


def responses(data: ConfigDict) -> None:
    """Which of the responses that a model wrote count as whole."""
    data.not_ended = "keep"  # Responses with `ended` false: keep, without an end token, or drop.


def training_rows(data: ConfigDict) -> None:
    data.train_rows = 0  # So many rows, drawn with the seed; 0 takes all.
    # Folder in which the tokens of large files are kept for the next start; "" is rlhf_jax/tokens in the user's cache
    # folder, none keeps none.
    data.token_cache = ""


def pair_rows(data: ConfigDict) -> None:
    """How the responses to one prompt stand in a row."""
    # Whether their prompt is computed once for all of them: on, off, or auto (where that saves work); one loss.
    data.share_prompts = "auto"


def computed_model(model: ConfigDict) -> None:
    """How any model is computed."""
    model.dtype = "float32"  # Of matrix products: float32 or bfloat16.


def read_model(model: ConfigDict) -> None:
    """What can be said of any model that is read from a folder."""
    model.adapter = ""  # A PEFT folder that is laid over it; with PPO, over the policy.
    computed_model(model)


def trained_model(model: ConfigDict) -> None:
    """What can be said of a model that is trained: how it is computed, for speed and memory."""
    read_model(model)
    model.remat = "none"  # What the backward pass computes again instead of keeping it: none, dots or full.
    model.attention = "auto"  # Or xla, cudnn (NVIDIA), splash (TPU).


def scored_by(model: ConfigDict) -> None:
    """The reward model of a method that samples."""
    # Any reward model: of another size, family, tokenizer or template than the policy. One with the policy's tokenizer
    # and template reads the sampled tokens, others the text; what that takes is in timing_s/score.
    model.reward = "runs/farm/reward_model/export"
    model.reward_adapter = ""  # A PEFT folder that is laid over it; it may bring the score head.
    model.reward_template = ""  # Of the text that it reads, such as chat; "": data.template.


def read_rewards(model: ConfigDict) -> None:
    """How the scores of a reward model that is an ensemble become one."""
    model.combine = ""  # mean, min or mean_minus_variance; "": as the ensemble's own file says.
    model.combine_coef = 1.0  # With mean_minus_variance, what the variance is multiplied with.


def lora(c: ConfigDict) -> None:
    """Trains a low-rank adapter beside the model, which stays as it is."""
    c.lora = ConfigDict()
    c.lora.rank = 0  # 0: all parameters are trained.
    c.lora.alpha = 16.0  # What the adapter adds is multiplied with alpha / rank.
    c.lora.targets = "all"  # Linear layers that have one: all, or some of q,k,v,o,gate,up,down.
    c.lora.base_dtype = "float32"  # Of the frozen weights; with dtype bfloat16, bfloat16 is as good.


def optimizer(c: ConfigDict, *, learning_rate: float, warmup_steps: int) -> None:
    """How gradients become an update. Rate and warm-up have no defaults: every method and size has its own."""
    c.microbatches = 1  # Gradient accumulation; divides the batch of each device.
    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw, adamw_tf, adafactor, rmsprop, lion or sgd.
    c.optimizer.learning_rate = learning_rate  # The highest, which is reached after the warm-up.
    c.optimizer.schedule = "cosine"  # constant, linear, cosine or inverse_sqrt.
    c.optimizer.warmup_steps = warmup_steps  # Steps in which the rate rises to it.
    c.optimizer.weight_decay = 0.0  # Of matrices only; decoupled, so multiplied with the rate.
    c.optimizer.b1 = 0.9  # Momentum: decay of the mean of gradients.
    c.optimizer.b2 = 0.98  # Decay of the mean of their squares.
    c.optimizer.eps = 1e-8  # Added to the root of that mean.
    c.optimizer.max_grad_norm = 1.0  # Longer gradients are scaled down to this norm; 0: never.
    c.optimizer.ema = 0.0  # Decay of an average of the parameters, evaluated and exported; 0: none.


def rollout(c: ConfigDict, *, batch_size: int, max_new_tokens: int, samples: int = 1) -> None:
    """What an online method samples in every step."""
    c.rollout = ConfigDict()
    c.rollout.batch_size = batch_size  # Prompts per step, over all devices.
    c.rollout.samples = samples  # Responses of each prompt; they share its prefill.
    c.rollout.max_new_tokens = max_new_tokens  # The longest response.
    # Parts that are sampled, scored and read one after the other, to save memory; divides the prompts of each device.
    c.rollout.microbatches = 1
    c.rollout.temperature = 1.0  # Log-probs are taken at this temperature everywhere.
    c.rollout.dtype = "float32"  # Of the policy copy that samples.
    c.rollout.tensor = (
        0  # Devices that share one copy of the policy that samples, of all devices; 0: mesh.tensor.
    )
    # none, models, optimizer or all: reference and reward models, and the optimizer's moments, wait in the hosts'
    # memory while they are not used. That takes memory there, and the time to move them (--plan says how much).
    c.rollout.offload = "none"
    c.rollout.staleness = (
        0  # Samples with the policy of so many steps before, as a fleet that lags behind would.
    )


def sampler_correction(c: ConfigDict) -> None:
    """Weights of the policy loss for responses of another policy than the one that learns: older, or in bfloat16."""
    # none, token or sequence: of each one min(p of the policy that learns / p of the one that sampled, the cap).
    c.rollout.correction = "none"
    c.rollout.correction_cap = 2.0  # At least 1, where both are the same policy.


def seeds(c: ConfigDict) -> None:
    """How often a study runs its stages."""
    c.seeds = ()  # (0,1,2): every stage once for each of these, in folders seed_N/NAME; (): for the page's seed alone.
    c.once = ()  # The stages that are run once for all seeds.
    c.at_once = (
        1  # Stages that run at one time on a machine without accelerators, each on its share of the cores.
    )


def processes(c: ConfigDict) -> None:
    # Whether other processes belong to this run: auto (as the launcher says), on or off.
    c.distributed = "auto"


def devices(c: ConfigDict) -> None:
    """How the devices share the work; one of the three may be -1, which takes the devices that are left."""
    processes(c)
    c.mesh = ConfigDict()
    c.mesh.data = 1  # Each has all parameters and some of the rows.
    # Each has a part of all parameters and some of the rows. A number, or auto: as few as the memory plan of training
    # allows, on several hosts at least one host's; mesh.data takes the rest.
    c.mesh.fsdp = FieldReference(-1, field_type=object)
    c.mesh.tensor = 1  # Each has a part of every matrix product, and they share rows.


def rhythm(c: ConfigDict, *, log_every: int, eval_every: int, save_every: int) -> None:
    """What is said and kept while a trainer runs. The three are steps, and every method's steps last differently."""
    c.log_every = log_every  # Steps between two lines of metrics.jsonl.
    c.eval_every = eval_every  # Steps between two evaluations; 0: only at the end.
    c.save_every = save_every  # Steps between two checkpoints; 0: only at the end.
    c.keep_checkpoints = 2  # The last so many stay,
    c.keep_best = 1  # and, with best_metric, so many of the best.
    c.best_metric = ""  # Chooses the checkpoint that is exported, such as eval/loss; "": the last.
    c.best_mode = "min"  # min or max.
    c.tensorboard = False  # Metrics as TensorBoard's event files, too,
    c.wandb_project = ""  # and to this project of Weights & Biases; "": not.


def asking(c: ConfigDict) -> None:
    """How judges are asked, how fast, and what it may cost."""
    c.max_concurrency = 32  # Requests under way at a time.
    c.cache = ""  # SQLite file of answers; "" keeps it in the workdir.
    # online; batch: the provider's batch service, half the price, within a day, and the same command takes up its
    # batches again; replay: nobody is asked; cancel: stops the batches and does no more.
    c.transport = "online"
    c.dry_run = False  # Only tell how many calls, tokens, dollars and seconds it would be.
    c.max_usd = 0.0  # Stop before more than this could be spent; 0 is no limit.
    c.requests_per_minute = 0.0  # Of each model; 0 follows the provider's headers.
    c.tokens_per_minute = 0.0  # The same for tokens.
    c.timeout_s = 120.0  # Of one request.
    c.import_answers = ""  # A parquet file of answers that go into the cache before anybody is asked.
    c.export_answers = ""  # A parquet file that gets all of the cache's answers afterwards.


def reward_sources(c: ConfigDict) -> None:
    """What scores the responses that a policy samples: one source, or a weighted sum of several."""
    c.reward = ConfigDict()
    # KIND or KIND=WHAT with commas between them, and *WEIGHT behind each that has not weight 1. Kinds: reward_model
    # (model.reward, or =FOLDER), judge=FILE.yaml, function=MODULE:FUNCTION. For example
    # reward_model*1.0,function=my_rewards:length*0.1,judge=configs/judges/micro_rating.yaml*0.5
    c.reward.sources = "reward_model"
    # For a judge that compares: outputs (of generate) that each response meets; "": a prompt's responses meet each
    # other, where the method samples several.
    c.reward.baseline = ""
    c.reward.max_usd = 0.0  # One start stops before it could spend more on its judge; 0 is no limit.
    c.reward.max_concurrency = 32  # Requests under way at a time.
    c.reward.cache = ""  # SQLite file of answers; "" keeps them in the workdir.
    c.reward.requests_per_minute = 0.0  # Of each model; 0 follows the provider's headers.
    c.reward.tokens_per_minute = 0.0  # The same for tokens.
    c.reward.timeout_s = 120.0  # Of one request.


def win_rate(c: ConfigDict) -> None:
    """A judge that compares the responses of every evaluation with a baseline's: eval/win_rate."""
    c.win_rate = ConfigDict()
    c.win_rate.judges = (
        ""  # A pairwise judge's YAML, as configs/judges/micro_clean.yaml; "": nobody is asked.
    )
    # Outputs (of generate) to the same prompts; "": what the policy itself answers before its first step.
    c.win_rate.baseline = ""
    c.win_rate.max_instructions = 0  # At most so many of the evaluation's prompts; 0: all.
    c.win_rate.max_usd = 0.0  # One start stops before it could spend more on its judge; 0 is no limit.
    c.win_rate.max_concurrency = 32  # Requests under way at a time.
    c.win_rate.cache = ""  # SQLite file of answers; "" keeps them in the workdir.
    c.win_rate.requests_per_minute = 0.0  # Of each model; 0 follows the provider's headers.
    c.win_rate.tokens_per_minute = 0.0  # The same for tokens.
    c.win_rate.timeout_s = 120.0  # Of one request.


def sampled_win_rate(c: ConfigDict, *, max_prompt_length: int, max_new_tokens: int) -> None:
    """The same for a method that trains on fixed rows: what its policy samples at evaluations, for nothing else."""
    win_rate(c)
    c.win_rate.prompts = "runs/farm/data/val.parquet"  # Sampled at every evaluation, where there are judges.
    c.win_rate.max_prompt_length = max_prompt_length  # Longer prompts are left out.
    c.win_rate.max_new_tokens = max_new_tokens  # The longest response.
    c.win_rate.temperature = 1.0  # 0 is greedy.
