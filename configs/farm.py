"""The whole loop in one command: world -> SFT -> pairs -> labels -> reward model -> DPO and PPO -> leaderboard.

    python -m rlhf_jax.main --config=configs/farm.py --workdir=runs/farm

Needs no network, key or weights. Every stage is a page of its own with its own folder below the workdir, and takes
overrides: --config.ppo.kl_coef=0.02. Finished stages are reused, a killed run continues. `configs/farm.py:whole` is the
loop as the studies begin theirs, with longer stages.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside, sibling

common = module_beside(__file__, "common")

RANKED = ("sft", "dpo", "ppo")  # The models whose outputs are compared.
SAMPLED_OR_TRAINED = ("sft", "pairs", "val_pairs", "reward_model", "dpo", "ppo", "outputs")


def get_config(variant: str = "microfarm") -> ConfigDict:
    variants = {"microfarm": microfarm, "whole": whole, "smoke": smoke, "real_model": real_model}
    return choose_variant(variant, variants)


def microfarm() -> ConfigDict:
    c = whole()
    # For a first look: minutes on two cores, and the same order of the models as the whole loop's.
    c.sft.epochs = 3.0
    c.pairs.data.rows = 4500
    c.ppo.steps = 60
    return c


def whole() -> ConfigDict:
    """Every stage with its page's length."""
    c = _loop()
    c.at_once = 2  # Two stages on a core each take less time than one after the other on both.
    return c


def _loop() -> ConfigDict:
    c = ConfigDict()
    c.job = "study"
    c.seed = 0  # Of the world and of every stage.
    common.seeds(c)
    common.processes(c)
    c.report = "evaluate"  # The stage whose table is shown at the end and whose report is copied.

    # The stages in their order, each in its own folder: (name, group of settings below, overrides of these).
    c.stages = (
        ("data", "world"),
        ("sft", "sft"),
        ("pairs", "pairs"),
        ("val_pairs", "val_pairs"),
        ("labels", "labels"),
        ("reward_model", "reward_model"),
        ("scores", "scores"),
        ("dpo", "dpo"),
        ("ppo", "ppo"),
        *((f"outputs/{m}", "outputs", f"model.path={{{m}}}/export", f"model.name={m}") for m in RANKED),
        ("evaluate", "evaluate"),
    )

    # The groups. A name in braces is the folder of that stage.
    c.world = sibling(__file__, "make_data")  # With world.instructions=FILE: your own instructions.

    c.sft = sibling(__file__, "sft")
    c.sft.data.train = "{data}/sft.parquet"
    c.sft.data.eval = "{data}/val.parquet"
    c.sft.model.tokenizer = "{data}/tokenizer"

    # Half of the pool's labels are coin flips, as in AlpacaFarm, so labels are what is scarce. Three samples of a
    # prompt make three pairs: twice the labels of two samples of 10k prompts, for the same sampling.
    c.pairs = sibling(__file__, "generate", "pairs")
    c.pairs.model.path = "{sft}/export"
    c.pairs.data.prompts = "{data}/preference.parquet"
    c.pairs.data.rows = 6700
    c.pairs.samples = 3
    # Two samples of unseen prompts, to test the reward model.
    c.val_pairs = sibling(__file__, "generate", "pairs")
    c.val_pairs.model.path = "{sft}/export"
    c.val_pairs.data.prompts = "{data}/val.parquet"
    c.val_pairs.data.rows = 1000
    c.labels = sibling(__file__, "annotate")
    c.labels.samples = "{pairs}/outputs.parquet"
    c.labels.one_pair_per_prompt = False

    c.reward_model = sibling(__file__, "reward_model")
    c.reward_model.data.train = "{labels}/labels.parquet"
    c.reward_model.model.init = "{sft}/export"
    c.reward_model.center_on = "{data}/val.parquet"
    c.scores = sibling(__file__, "score")
    c.scores.model.path = "{reward_model}/export"
    c.scores.data.responses = "{val_pairs}/outputs.parquet"

    c.dpo = sibling(__file__, "dpo")
    c.dpo.data.train = "{labels}/labels.parquet"
    c.dpo.model.init = "{sft}/export"
    for name in ("sft", "dpo"):  # Asked only where win_rate.judges names somebody.
        c[name].win_rate.prompts = "{data}/val.parquet"
    c.ppo = sibling(__file__, "ppo")
    c.ppo.data.train = "{data}/unlabeled.parquet"
    c.ppo.data.eval = "{data}/val.parquet"
    c.ppo.model.policy = "{sft}/export"
    c.ppo.model.reward = "{reward_model}/export"

    c.outputs = sibling(__file__, "generate")  # Of one stage for each model that is ranked.
    c.outputs.data.prompts = "{data}/eval.parquet"
    c.evaluate = sibling(__file__, "evaluate")
    c.evaluate.outputs = ",".join(f"{m}={{outputs/{m}}}/outputs.parquet" for m in RANKED)
    c.evaluate.baseline = "{data}/eval.parquet"
    c.evaluate.labels = "{labels}/labels.parquet"
    c.evaluate.scored = "{scores}/scores.parquet"
    c.evaluate.runs = ",".join(f"{m}={{{m}}}" for m in ("sft", "reward_model", "dpo", "ppo"))

    for name in (*SAMPLED_OR_TRAINED, "world", "labels", "evaluate"):
        c[name].seed = c.get_ref("seed")
    for name in (*SAMPLED_OR_TRAINED, "scores"):
        c[name].distributed = c.get_ref("distributed")
    return c


def smoke() -> ConfigDict:
    """Every stage, a few steps each: to see that the machinery works, not what it reaches."""
    c = _loop()
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
    c = _loop()
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
