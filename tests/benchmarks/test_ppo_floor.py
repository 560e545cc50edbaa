"""The floor of an iteration against a count token by token, and what is said of ours against the traced programs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import ppo_floor
from setting import Size

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.settings import load_page

# Rows of more tokens than a block of attention.
MICRO = Size(64, 16, 2, 2, 24, prompt=40, response=104, rows=4, generated=2, ppo_prompts=4)
CONFIG = ModelConfig(64, 16, 2, 2, 1, 8, 24)
X = ppo_floor.Iteration(CONFIG, CONFIG, (CONFIG,), 3, 2, 8, 8, 2, 2, False, "none", True, True)


def position(seen, head):
    """FLOPs of one position of CONFIG that sees so many, itself included."""
    a_layer = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24) + 2 * seen * 2 * 2 * 8
    return 2 * a_layer + (2 * 16 * 64 if head else 0)


def test_the_floor_counted_token_by_token():
    p, r = 5, 4
    group = sum(position(i, False) for i in range(1, p + 1))
    # The last prompt token predicts the first token of both responses, from the same logits.
    with_head = group + 2 * 16 * 64
    scored = group
    for _ in range(X.samples):
        group += sum(position(i, False) for i in range(p + 1, p + r))
        with_head += sum(position(i, True) for i in range(p + 1, p + r))
        scored += sum(position(i, False) for i in range(p + 1, p + r + 1))
    found = ppo_floor.floor(X, p, r)
    assert found["prefill"] + found["decoding"] == X.prompts * with_head
    assert found["reading: reference"] == X.prompts * with_head == 2 * found["reading: policy"]
    assert found["reading: value"] == X.prompts * group / 2 and found["scoring"] == X.prompts * scored
    assert found["updates: policy"] == 2 * 3 * X.prompts * with_head
    assert found["updates: value"] == 2 * 3 * X.prompts * group


@pytest.mark.parametrize(
    ("job", "changes"),
    [
        ("ppo", {}),
        ("ppo", {"minibatch_size": 2, "model.remat": "full"}),
        ("grpo", {"rollout.samples": 2, "minibatch_size": 8}),
    ],
    ids=["one minibatch", "two, with remat", "without values"],
)
def test_what_we_do_is_what_the_programs_do(job, changes, tmp_path):
    page, asked = ppo_floor.page_of_size(MICRO, tmp_path, job)
    page.update_from_flattened_dict(changes)
    found, counts = ppo_floor.programs(page, asked)
    assert (found.P, found.R, found.rows) == (40, 104, 8 if job == "grpo" else 4)
    done = ppo_floor.ours(found)
    assert (done["reading: policy"] == 0) == (job == "grpo" or not changes)
    parts = {"sampling": ("prefill", "decoding"), "scoring": ("scoring",)}
    parts |= {name: [x for x in done if x.startswith(name)] for name in ("reading",)}
    parts["train step"] = [x for x in done if x.startswith("updates")]
    for program, names in parts.items():
        assert sum(done[x] for x in names) == pytest.approx(counts[program], rel=0.02), program
    said = ppo_floor.table(job, found, counts, (20, 50))
    assert f"{found.rows} rows of 20 + 50 tokens in 40 + 104 columns" in said
    assert sum(ppo_floor.floor(found, 40, 104).values()) < sum(done.values())


def test_pages_that_are_named_are_there():
    for path, _ in ppo_floor.PAGES.values():
        assert load_page(str(ppo_floor.ROOT / path)).job == "ppo"
