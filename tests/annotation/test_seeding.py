"""The seed semantics: golden values made with `random.Random` and the published strings, no code of ours."""

import math
from collections import Counter

import pytest

from rlhf_jax.annotation.judges import random_choices

PROMPTS = [
    ("Name three fruits.", ""),
    ("Summarise the text.", "A fox jumps."),
    ("Écris « bonjour » 🎉", ""),
    ("What is 2+2?", ""),
]
SWITCHED = [[0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]]
POOL_OF_13 = [[0, 6, 4, 9], [12, 4, 9, 5], [3, 4, 7, 7], [6, 12, 6, 9]]
NOISE_25 = [[2, None, None, None], [1, 1, 2, None], [2, None, 2, None], [2, 1, None, None]]


@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("seed", range(4))
def test_golden_choices(i: int, seed: int) -> None:
    instruction, input_text = PROMPTS[i]
    merged, text = (
        random_choices.merged_instruction(instruction, input_text),
        random_choices.seed_text(instruction, input_text),
    )
    assert random_choices.is_switched(merged, seed) is bool(SWITCHED[i][seed])
    assert random_choices.pool_index(text, [1.0] * 13, seed) == POOL_OF_13[i][seed]
    assert random_choices.noisy_preference(text, 0.25, seed) == NOISE_25[i][seed]


def test_golden_counts_over_a_thousand_prompts() -> None:
    prompts = [f"prompt {i}" for i in range(1000)]
    assert sum(random_choices.is_switched(prompt, 0) for prompt in prompts) == 472
    noise = Counter(random_choices.noisy_preference(prompt, 0.25, 0) for prompt in prompts)
    assert noise == {None: 491, 1: 253, 2: 256}
    chosen = Counter(random_choices.pool_index(prompt, [1.0] * 13, 0) for prompt in prompts)
    assert [chosen[i] for i in range(13)] == [95, 84, 75, 80, 62, 84, 83, 81, 79, 63, 67, 73, 74]


def test_the_merge_is_alpaca_farms() -> None:
    assert random_choices.merged_instruction("Do it.", "") == "Do it."
    assert random_choices.merged_instruction("Do it.", "On this.") == "Do it.\n\nOn this."
    assert random_choices.seed_text("Do it.", "On this.") == "On this.Do it.\n\nOn this."


def test_no_noise_without_flips_and_only_noise_at_a_half() -> None:
    assert all(random_choices.noisy_preference(f"p{i}", 0.0, 0) is None for i in range(50))
    assert all(random_choices.noisy_preference(f"p{i}", 0.5, 0) in (1, 2) for i in range(50))


def test_weights_steer_the_pool() -> None:
    chosen = Counter(random_choices.pool_index(f"p{i}", [1.0, 3.0, 0.0], 0) for i in range(4000))
    assert chosen[2] == 0
    assert abs(chosen[1] / 4000 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_a_derangement_moves_everything(n: int) -> None:
    for i in range(200):
        order = random_choices.derangement(n, f"p{i}", 0)
        assert sorted(order) == list(range(n))
        assert all(order[j] != j for j in range(n))


def test_every_partner_is_equally_likely() -> None:
    first = Counter(random_choices.derangement(4, f"p{i}", 1)[0] for i in range(3000))
    assert set(first) == {1, 2, 3}
    assert all(abs(count - 1000) < 5 * math.sqrt(3000 * 2 / 9) for count in first.values())
