"""Settings that cannot be right are refused where the page is read: the field as written, its value, its range."""

import math

import jax.numpy as jnp
import pytest
import tiny_farm
from test_config_pages import CONFIGS, PAGES, RECIPES, variants

from rlhf_jax import ranges
from rlhf_jax.annotation.calls.engine import TRANSPORTS
from rlhf_jax.annotation.formats import FORMATS
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.templates import TEMPLATES
from rlhf_jax.errors import UserError
from rlhf_jax.models import lora
from rlhf_jax.models.config import IMPLEMENTATIONS, REMAT_POLICIES
from rlhf_jax.models.huggingface import tensor_files
from rlhf_jax.objectives.logprobs import sft_loss
from rlhf_jax.objectives.policy_gradient import ESTIMATORS
from rlhf_jax.objectives.preference import bradley_terry
from rlhf_jax.objectives.preference_losses import PairLogprobs, pair_loss
from rlhf_jax.programs import is_method, names, program
from rlhf_jax.rollout.experience import Readings, rollout_metrics
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.settings import load_page
from rlhf_jax.training.optimizers import optimizer
from rlhf_jax.training.run import offline
from rlhf_jax.training.run.online_models import rollout_settings

# Methods bring the rows of settings that they alone have.
for method in filter(is_method, names()):
    program(method)
ALL = [f"{page}.py:{variant}" for page in PAGES for variant in variants(page)]
ALL += [f"{recipe}.py" for recipe in RECIPES]


def page_of(page):
    return load_page(f"{CONFIGS}/{page}.py")


@pytest.mark.parametrize("spec", ALL)
def test_every_field_has_a_range_and_every_page_keeps_to_it(spec):
    built = load_page(f"{CONFIGS}/{spec}")
    for field in tiny_farm.flat(built):
        stage = built.get(field.split(".")[0])
        job, name = (stage.job, field.split(".", 1)[1]) if hasattr(stage, "job") else (built.job, field)
        # A method's file brings the rows of settings that it alone has.
        program(job)
        assert ranges.range_of(job, name) is not None, f"{field}: give it a row in rlhf_jax/ranges.py"
    ranges.check_ranges(built.to_dict())


def test_no_row_is_left_over():
    pages = [page_of(page) for page in PAGES]
    fields = {f"{page.job}.{field}" for page in pages for field in tiny_farm.flat(page)}
    for row in ranges.RANGES:
        assert any(field == row or field.endswith(f".{row}") for field in fields), row


@pytest.mark.parametrize(
    ("job", "field", "known"),
    [
        ("sft", "optimizer.name", optimizer._OPTIMIZERS),
        ("sft", "optimizer.schedule", optimizer._SHAPES),
        ("sft", "model.remat", REMAT_POLICIES),
        ("sft", "model.attention", IMPLEMENTATIONS),
        ("sft", "lora.base_dtype", tensor_files.DTYPES),
        ("weight_diff", "dtype", tensor_files.DTYPES),
        ("ppo", "kl_estimator", ESTIMATORS),
        ("sft", "data.template", {*TEMPLATES, CHAT}),
        ("annotate", "transport", {*TRANSPORTS, "cancel"}),
        ("annotate", "feedback_format", FORMATS),
        ("annotate", "formats", FORMATS),
        ("sft", "lora.targets", lora.TARGETS),
    ],
)
def test_words_are_those_that_the_code_knows(job, field, known):
    assert set(ranges.range_of(job, field).words) == set(known)


B, R = 3, 4
SIDES, TOKENS = jnp.zeros(B), jnp.ones((B, R))
SAMPLED = Generation(TOKENS, TOKENS, TOKENS > 0, SIDES, SIDES > 0, jnp.int32(R))
BOTH = {"policy": TOKENS, "reference": TOKENS}
READ = Readings(TOKENS.astype(jnp.int32), TOKENS[:, 0].astype(jnp.int32), TOKENS > 0, BOTH, TOKENS, {})
SCORED = Scored(SIDES, SIDES == 0)
EVALUATED = {
    "sft": lambda: sft_loss(TOKENS, TOKENS, TOKENS > 0) | {"win_rate": 0.5},
    "reward_model": lambda: bradley_terry(SIDES, SIDES, SIDES),
    "dpo": lambda: pair_loss(PairLogprobs(*[SIDES] * 6), SIDES, beta=1.0) | {"win_rate": 0.5},
    "ppo": lambda: (
        rollout_metrics(READ, SAMPLED, SCORED, rollout_settings(page_of("ppo")))
        | {"rlhf_reward": 0.0, "win_rate": 0.5}
    ),
    "quark": lambda: (
        rollout_metrics(READ, SAMPLED, SCORED, rollout_settings(page_of("quark"))) | {"win_rate": 0.5}
    ),
}


@pytest.mark.parametrize("job", EVALUATED)
def test_metrics_that_choose_a_checkpoint_are_those_that_are_evaluated(job):
    measured = {f"eval/{name.removeprefix('objective/')}" for name in EVALUATED[job]()}
    assert set(ranges.range_of(job, "best_metric").words) == measured


def test_words_of_lists():
    fits = ranges.range_of("sft", "lora.targets").fits
    assert fits("all") and fits("q, v") and not fits("") and not fits("q_proj") and not fits("all,q")


WRONG = {
    "generate": {
        "temperature": (-1.0, math.nan, math.inf, 1e-9),
        "top_p": (0.0, -0.5, 1.5, math.nan),
        "top_k": (-1,),
        "max_new_tokens": (0, -3),
        "samples": (0,),
        "batch_size": (0, -8),
        "data.rows": (-1,),
        "data.max_prompt_length": (0,),
        "seed": (-1, 2**32, 2**64),
        "mesh.fsdp": (0, -2, True),
        "distributed": ("yes",),
        "model.dtype": ("fp32", "float16", "float32 "),
    },
    "sft": {
        "optimizer.learning_rate": (-1e-3, math.nan, 1e5),
        "optimizer.warmup_steps": (-5,),
        "optimizer.max_grad_norm": (-1.0, math.nan),
        "optimizer.b1": (1.0, -0.1),
        "optimizer.b2": (1.5, 1.0),
        "optimizer.eps": (0.0, -1e-8),
        "optimizer.weight_decay": (-1.0, math.inf),
        "optimizer.ema": (1.0, -0.1),
        "optimizer.name": ("adam", "", "AdamW"),
        "optimizer.schedule": ("cosin",),
        "epochs": (0.0, -1.0, math.inf, math.nan),
        "lora.alpha": (math.nan, 0.0),
        "lora.rank": (-1,),
        "lora.targets": ("q_proj,v_proj", "q,w", ""),
        "data.max_length": (0,),
        "data.train_rows": (-1,),
        "data.eval_rows": (0, -1),
        "data.template": ("brif",),
        "logprob_chunk": (0,),
        "microbatches": (0,),
        "model.width": (0, -4),
        "model.vocab_size": (100,),
        "log_every": (0,),
        "eval_every": (-1,),
        "save_every": (-1,),
        "keep_checkpoints": (0,),
        "keep_best": (0,),
        "model.remat": ("all",),
        "model.attention": ("flash",),
        "lora.base_dtype": ("int8",),
        "best_mode": ("lowest",),
        "best_metric": ("eval_loss", "loss", "eval/rlhf_reward"),
    },
    "dpo": {"beta": (0.0, -0.1, math.nan), "label_smoothing": (0.5, 1.5, -0.1), "reference": ("never",)},
    "reward_model": {"center_rows": (0,)},
    "ppo": {
        "clip": (-0.2, 0.0),
        "value_clip": (-1.0,),
        "gamma": (1.5, -1.0),
        "lam": (2.0, -0.5),
        "kl_coef": (-0.1, math.nan),
        "target_kl": (0.0,),
        "kl_horizon": (-1.0, 0.0),
        "value_coef": (-1.0,),
        "missing_eos_penalty": (math.nan, 1.0),
        "value_learning_rate": (-1.0,),
        "rollout.temperature": (0.0, -1.0),
        "rollout.max_new_tokens": (0,),
        "rollout.batch_size": (0,),
        "rollout.microbatches": (0, -1),
        "minibatch_size": (0,),
        "steps": (0, 2**31),
        "epochs": (0,),
    },
    "annotate": {
        "p_label_flip": (-0.1, 1.5, math.nan),
        "max_concurrency": (0,),
        "max_usd": (-1.0, math.nan, math.inf),
        "requests_per_minute": (-1.0,),
        "tokens_per_minute": (-1.0,),
        "timeout_s": (0.0, -1.0),
        "n_samples": (0,),
        "transport": ("onlin",),
        "formats": (("trll",),),
    },
    "evaluate": {"min_coverage": (80.0, -0.1), "clear_margin": (-0.1,), "max_instructions": (-1,)},
    "measure": {"n_bootstrap": (-1,), "min_per_generator": (-1,)},
    "inspect_data": {"examples": (-1,), "bins": (0,), "data.kind": ("pairs",)},
    "weight_diff": {"dtype": ("fp16",), "new_rows": ("random",)},
    "study": {"stages": ((), ("dpo",), (("dpo",),), (("dpo", "dpo", 0.1),))},
    "farm": {
        "world.scale": (0.0, 3.0),
        "ppo.clip": (-0.2,),
        "labels.p_label_flip": (2.0,),
        "sft.optimizer.b1": (1.0,),
        "pairs.temperature": (-1.0,),
        "seed": (-1,),
    },
}


@pytest.mark.parametrize(
    ("job", "field"), [(job, field) for job, fields in WRONG.items() for field in fields]
)
def test_what_cannot_be_right_is_refused(job, field, tmp_path):
    """By the job itself, so also when it is called from Python, and before it makes its folder."""
    run = program(page_of(job).job).run
    for value in WRONG[job][field]:
        page = page_of(job)
        page.update_from_flattened_dict({field: value})
        with pytest.raises(UserError) as error:
            run(page, str(tmp_path / "run"))
        assert str(error.value).startswith(f"{field}: {value!r}; use "), error.value
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_stage_of_the_farm_is_named_as_it_is_written(tmp_path):
    page = page_of("farm")
    page.ppo.value_learning_rate = -1.0
    with pytest.raises(
        UserError, match=r"^ppo.value_learning_rate: -1.0; use a number of at least 0 and at most 10$"
    ):
        program("study").run(page, str(tmp_path / "run"))


LONG = r"optimizer.warmup_steps: 50; the run has 40 steps, so .*; use at most 40$"


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_a_warmup_longer_than_the_run(schedule, capsys):
    """Refused where the rate falls to 0 at the end of the run; else a longer run may go on from this one."""
    page = page_of("sft")
    page.optimizer.update(schedule=schedule, warmup_steps=50)
    page.epochs, page.batch_size = 4.0, 10
    if schedule in ("linear", "cosine"):
        with pytest.raises(UserError, match=f"^{LONG}"):
            offline.steps_of(page, 100)
    else:
        assert offline.steps_of(page, 100) == 40
        assert "optimizer.warmup_steps: 50, but the run has 40 steps" in capsys.readouterr().out
    page.optimizer.warmup_steps = 40
    assert offline.steps_of(page, 100) == 40 and not capsys.readouterr().out


def test_a_warmup_longer_than_the_run_of_a_stage():
    page = page_of("farm")
    page.ppo.optimizer.warmup_steps, page.ppo.steps = 50, 40
    with pytest.raises(UserError, match=rf"^ppo\.{LONG}"):
        ranges.check_ranges(page.to_dict())


def test_words_that_are_nearly_right():
    page = page_of("sft").to_dict()
    page["optimizer"]["schedule"] = "cosin"
    with pytest.raises(UserError, match=r"'cosin'; use one of .*; did you mean cosine\?$"):
        ranges.check_ranges(page)


KINDS = [("steps", 1.5), ("steps", "3"), ("steps", True), ("adaptive_kl", "maybe")]


@pytest.mark.parametrize(("field", "value"), KINDS)
def test_values_of_another_kind(field, value):
    with pytest.raises(UserError, match=f"^{field}: {value!r}; use "):
        ranges.check_ranges(page_of("ppo").to_dict() | {field: value})


def test_a_field_that_no_job_has():
    with pytest.raises(UserError, match=r"^kl_coeff: no job has such a field; did you mean kl_coef\?$"):
        ranges.check_ranges(page_of("ppo").to_dict() | {"kl_coeff": 0.1})
