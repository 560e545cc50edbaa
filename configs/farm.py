"""The whole loop in one command: world -> SFT -> pairs -> labels -> reward model -> DPO and PPO -> leaderboard.

    python -m rlhf_jax.main --config=configs/farm.py --workdir=runs/farm

Needs no network, key or weights. Every stage is a page of its own with its own workdir below this one, and takes
overrides: --config.ppo.kl_coef=0.02. Finished stages are reused, a killed run continues.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, sibling


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "smoke": smoke, "real_model": real_model})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "farm"
    c.seed = 0  # Of the world and of every stage.
    c.distributed = "auto"

    c.world = ConfigDict()
    c.world.scale = 1.0  # 1 is AlpacaFarm's 10k/10k/20k/2k/805 instructions.
    c.world.vocab_size = 1024
    # Your own instruction records (instruction, input, output), split among the stages; "" is the embedded world.
    c.world.instructions = ""
    c.world.rows = 0  # So many of them, drawn with the seed; 0 takes all.

    # One page per stage; paths below runs/farm are moved below this run's workdir.
    c.sft = sibling(__file__, "sft")
    # Half of the pool's labels are coin flips, as in AlpacaFarm, so labels are what is scarce. Three samples of a
    # prompt make three pairs: twice the labels of two samples of 10k prompts, for the same sampling.
    c.pairs = sibling(__file__, "generate", "pairs")
    c.pairs.data.rows = 6700
    c.pairs.samples = 3
    # Two samples of unseen prompts, to test the reward model.
    c.val_pairs = sibling(__file__, "generate", "pairs")
    c.val_pairs.data.prompts = "runs/farm/data/val.parquet"
    c.val_pairs.data.rows = 1000
    c.labels = sibling(__file__, "annotate")
    c.labels.one_pair_per_prompt = False
    c.reward_model = sibling(__file__, "reward_model")
    c.scores = sibling(__file__, "score")
    c.dpo = sibling(__file__, "dpo")
    c.ppo = sibling(__file__, "ppo")
    c.outputs = sibling(__file__, "generate")  # Run once for each of sft, dpo and ppo.
    c.evaluate = sibling(__file__, "evaluate")

    for name in ("sft", "pairs", "val_pairs", "labels", "reward_model", "dpo", "ppo", "outputs", "evaluate"):
        c[name].seed = c.get_ref("seed")
    for name in ("sft", "pairs", "val_pairs", "reward_model", "scores", "dpo", "ppo", "outputs"):
        c[name].distributed = c.get_ref("distributed")
    return c


def smoke() -> ConfigDict:
    """Every stage, a few steps each: to see that the machinery works, not what it reaches."""
    c = microfarm()
    c.world.scale = 0.05
    c.sft.epochs = 1.0
    c.sft.model.width = 32
    c.sft.model.layers = 2
    c.sft.model.ff = 64
    c.pairs.data.rows = 96
    c.val_pairs.data.rows = 48
    c.reward_model.epochs = 1.0
    c.reward_model.data.eval_rows = 16
    c.dpo.epochs = 1.0
    c.dpo.data.eval_rows = 16
    c.ppo.steps = 2
    c.ppo.rollout.batch_size = 32
    c.ppo.minibatch_size = 16
    c.ppo.data.eval_rows = 16
    for name in ("sft", "reward_model", "dpo", "ppo"):
        c[name].optimizer.warmup_steps = 1  # None may be longer than its run.
    c.evaluate.max_instructions = 32
    return c


def real_model() -> ConfigDict:
    """A small chat model and a few hundred instructions of yours, with adapters, on two CPU cores.

    bash scripts/real_model.sh INSTRUCTIONS    # fetches the model and fills in the next two

    The judges are the embedded ones, which see whether an answer is on the subject, long enough and well set; other
    ones are --config.labels.judges=FILE --config.evaluate.judges=FILE.

    SmolLM2-135M-Instruct, 400 of Alpaca's instructions: 38 minutes; PPO plans 4.6 GiB. Win rates against the files' own
    answers (40): SFT 43.6 %, DPO 46.2 %, PPO 47.5 %, each ± 8.
    """
    c = microfarm()
    c.world.rows = 400
    c.sft.model.init = ""  # The .gguf file or Hugging Face folder of a chat model; required.
    for name in ("sft", "reward_model", "dpo", "ppo"):
        c[name].lora.rank = 16
        c[name].lora.alpha = 32.0
        c[name].optimizer.warmup_steps = 2
        c[name].log_every = 1
        c[name].eval_every = 10
    for name in ("sft", "pairs", "val_pairs", "reward_model", "scores", "dpo", "ppo", "outputs"):
        c[name].data.template = "chat"
    for name in ("sft", "reward_model", "scores", "dpo"):
        c[name].data.max_length = 192
    for name in ("pairs", "val_pairs", "outputs"):
        c[name].data.max_prompt_length = 112
        c[name].max_new_tokens = 80
        c[name].batch_size = 32
    c.sft.data.eval_rows = 20
    c.sft.batch_size = 8
    c.sft.epochs = 1.0
    c.sft.optimizer.learning_rate = 3e-4
    c.pairs.samples = 2
    c.labels.one_pair_per_prompt = True  # Two samples are one pair.
    c.labels.p_label_flip = 0.0
    c.reward_model.data.eval_rows = 10
    c.reward_model.center_rows = 20
    c.reward_model.batch_size = 8
    c.reward_model.epochs = 1.0
    c.reward_model.optimizer.learning_rate = 1e-4
    c.scores.batch_size = 16
    c.dpo.data.eval_rows = 10
    c.dpo.batch_size = 8
    c.dpo.beta = 0.1
    c.dpo.optimizer.learning_rate = 5e-5
    c.ppo.data.max_prompt_length = 112
    c.ppo.data.eval_rows = 16
    c.ppo.rollout.batch_size = 16
    c.ppo.rollout.max_new_tokens = 80
    c.ppo.minibatch_size = 8
    c.ppo.epochs = 1
    c.ppo.steps = 4
    c.ppo.eval_every = 2
    c.ppo.save_every = 4
    c.ppo.optimizer.learning_rate = 5e-5
    c.ppo.value_learning_rate = 1e-4
    c.evaluate.utility = False  # Known only of the embedded world's instructions.
    c.evaluate.labels = ""
    c.evaluate.scored = ""
    c.evaluate.baseline_name = "your outputs"
    c.evaluate.title = "real model"
    return c
