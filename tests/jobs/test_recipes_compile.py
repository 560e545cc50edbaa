"""The papers' recipes are compiled for eight devices, without a weight, and fit 8 accelerators of 80 GB.

With RLHF_JAX_WIDE=1 every variant of every trainer's page is.

The compiler is the one for CPU, which computes bfloat16 products in float32: it plans more memory than others.
"""

import json
from pathlib import Path

import pytest
import recipes_on_eight
import tiny_farm
from quick import EIGHT

pytestmark = pytest.mark.timeout(900)
CARD = 80e9 / 2**30  # GiB


@pytest.fixture(scope="module")
def compiled():
    script = str(Path(__file__).with_name("recipes_on_eight.py"))
    out = tiny_farm.finish(tiny_farm.start([script], XLA_FLAGS=EIGHT))
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    for row in found:
        print("{name}: {gib:.1f} GiB per device, {flops:.3g} FLOPs per step".format(**row))
    return {row["name"]: row for row in found}


def test_every_page_is_compiled(compiled):
    assert set(compiled) == {spec for job in tiny_farm.TRAINERS for spec in recipes_on_eight.specs(job)}


def test_the_papers_recipes_fit_eight_cards_of_80_gb(compiled):
    papers = [row for row in compiled.values() if row["paper"]]
    assert len(papers) >= 6
    for row in papers:
        assert 7e9 * 12 / 8 / 2**30 * 0.8 < row["gib"] < CARD, row  # parameters and AdamW's moments, and more


def test_the_operations_of_a_recipe_are_those_of_its_tokens(compiled):
    """6 per parameter and token, and 2 more for what remat computes again."""
    tokens, parameters = 128 * 512, 6.7e9
    assert compiled["papers/alpaca_farm/sft.py"]["flops"] == pytest.approx(8 * parameters * tokens, rel=0.06)
