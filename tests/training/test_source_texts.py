"""What a page may say of its reward sources, and how what it may not is refused."""

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.settings import source_texts


def page(text):
    return {"reward": {"sources": text}}


def test_entries_have_kind_what_weight_and_a_name_of_their_own():
    text = "reward_model * 1.5, function=my_rewards:length*-0.1 ,judge=a/b.yaml,judge=c*d.yaml*2e-1,reward_model=F"
    found = source_texts.sources_of(page(text))
    assert [tuple(x) for x in found] == [
        ("reward_model", "reward_model", "", 1.5),
        ("function", "function", "my_rewards:length", -0.1),
        ("judge", "judge", "a/b.yaml", 1.0),
        ("judge_2", "judge", "c*d.yaml", 0.2),
        ("reward_model_2", "reward_model", "F", 1.0),
    ]
    assert source_texts.folders_in(text) == ("F",)


@pytest.mark.parametrize(
    ("text", "model_reward", "models", "judges"),
    [
        ("reward_model", True, True, False),
        ("reward_model=F", False, True, False),
        ("judge=J", False, False, True),
        ("function=m:f", False, False, False),
    ],
)
def test_what_a_page_reads(text, model_reward, models, judges):
    assert source_texts.names_model_reward(page(text)) == model_reward
    assert source_texts.reads_models(page(text)) == models
    assert source_texts.asks_judges(page(text)) == judges


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no source"),
        (" , ", "names no source"),
        (
            "reward_modle",
            "'reward_modle': the kind 'reward_modle' is none; use one of reward_model, judge, function",
        ),
        ("runs/rm*0.5", "the kind 'runs/rm' is none"),
        ("judge", "'judge' names nothing; write judge="),
        ("function=*2", "names nothing; write function=MODULE:FUNCTION"),
        ("reward_model=", "names nothing"),
        ("reward_model*", "the weight ''; use a finite number other than 0"),
        ("reward_model*0", "the weight '0'"),
        ("reward_model*nan", "the weight 'nan'"),
        ("judge=J*inf", "the weight 'inf'"),
        ("judge=J*x", "the weight 'x'"),
        ("reward_model,reward_model*2", "reward_model is named 2 times"),
        ("judge=J,reward_model,judge=J*2", "judge=J is named 2 times"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text, said):
    with pytest.raises(UserError) as told:
        source_texts.sources_of(page(text))
    assert str(told.value).startswith("reward.sources: ") and said in str(told.value)
    assert "\n" not in str(told.value)
