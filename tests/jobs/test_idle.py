"""A setting that was given and does nothing is said; one that nobody gave, or that works, is not."""

import pytest
import tiny_farm

from rlhf_jax import idle
from rlhf_jax.programs import is_method, names
from rlhf_jax.settings import load_page


def said(job, *overrides, **changes):
    page = load_page(f"{tiny_farm.ROOT}/configs/{job}.py")
    page.update_from_flattened_dict(changes)
    return list(idle.notices(page, idle.given(["main", "--config=x", *overrides])))


PAGES = {
    job: load_page(str(path)) for job in names() if (path := tiny_farm.ROOT / f"configs/{job}.py").is_file()
}


@pytest.mark.parametrize(("field", "row"), [(field, row) for row in idle.ROWS for field in row.fields])
def test_every_row_is_about_fields_of_its_jobs(field, row):
    has = [job for job, page in PAGES.items() if field in tiny_farm.flat(page)]
    assert has and set(row.jobs) <= set(has)
    for job in row.jobs or has:
        assert isinstance(row.when(PAGES[job]), bool), job


def test_a_row_without_jobs_is_about_each_that_has_the_field():
    for job in filter(is_method, PAGES):
        assert said(job, "--config.lora.alpha=8") == ["lora.alpha has no effect: lora.rank is 0"]
    assert said("weight_diff", "--config.lora.alpha=8") == []


def test_what_is_said():
    assert said("ppo", "--config.target_kl=6") == ["target_kl has no effect: adaptive_kl is false"]
    assert said("ppo", "--config.target_kl=6", **{"adaptive_kl": True}) == []
    assert said("sft", "--config.lora.alpha=8") == ["lora.alpha has no effect: lora.rank is 0"]
    assert said("sft", "--config.model.width=8", **{"model.init": "x"}) == [
        "model.width has no effect: model.init brings its own"
    ]
    assert said("sft", "--noconfig.model.tie_embeddings", **{"model.init": "x"})
    assert said("sft", "--config.model.width=8") == [] == said("sft")
    chat = "has no effect: data.template is not chat"
    assert said("dpo", "--config.data.thoughts=drop", "--config.data.date=2026-01-01") == [
        f"data.thoughts {chat}",
        f"data.date {chat}",
    ]
    assert said("dpo", "--config.data.thoughts=drop", **{"data.template": "chat"}) == []
    assert said("ppo", "--config.data.date=2026-01-01", **{"model.reward_template": "chat"}) == []
    assert said("inspect_data", "--config.data.chat_template=x", **{"data.template": "chat"}) == []
    assert said("farm", "--config.ppo.target_kl=6") == ["ppo.target_kl has no effect: adaptive_kl is false"]


def test_what_no_stage_of_a_study_takes_from_its_group():
    every = "every stage of this group sets its own"
    assert said("farm", "--config.outputs.model.name=x") == [f"outputs.model.name has no effect: {every}"]
    assert said("farm", "--config.outputs.model.adapter=x") == []
    assert said("study", "--config.dpo.beta=1", "--config.dpo.epochs=2") == [
        f"dpo.beta has no effect: {every}"
    ]
    without = {"stages": (("sft", "sft"),)}
    assert said("farm", "--config.dpo.beta=1", "--config.sft.epochs=2", **without) == [
        "dpo.beta has no effect: no stage is of the group dpo"
    ]
