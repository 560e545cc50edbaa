"""What is known of a model before its weights are read: its folders, and the adapter that is laid over it."""

import dataclasses
import json

import pytest
import tiny_farm

from rlhf_jax.errors import UserError
from rlhf_jax.models.huggingface.import_folder import Checkpoint
from rlhf_jax.models.lora import Lora
from rlhf_jax.training.run import load_models

GIVEN = Lora(2, 6.0, ("q", "v"))


def model(given, wanted):
    config = dataclasses.replace(tiny_farm.model_config(), adapter_scale=given.scale if given else 0.0)
    return load_models.model_of(Checkpoint(config, False, None, given), wanted)


def test_a_given_adapter_is_trained_further_by_its_own_numbers(tmp_path):
    assert model(GIVEN, GIVEN).adapter_scale == 3.0
    for field, value, said in (
        ("rank", 4, "lora.rank: 4, but model.adapter has 2"),
        ("alpha", 8.0, "lora.alpha: 8.0, but model.adapter has 6.0"),
        ("targets", ("q",), "lora.targets: q, but model.adapter has q,v"),
    ):
        with pytest.raises(UserError, match=said):
            model(GIVEN, GIVEN._replace(**{field: value}))


def test_a_fresh_adapter_has_the_pages_scale(tmp_path):
    assert model(None, GIVEN._replace(alpha=5.0)).adapter_scale == 2.5


def test_what_is_trained_whole_is_kept_in_float32(tmp_path):
    """The dtype of frozen weights says nothing about a model of which none is frozen."""
    half = {"lora.base_dtype": "bfloat16", "lora.targets": "q, up"}
    for rank, dtype in ((0, "float32"), (2, "bfloat16")):
        page = tiny_farm.settings("dpo", tmp_path, **half, **{"lora.rank": rank})
        found = load_models.lora_settings(page.lora)
        assert (found.base_dtype, found.targets) == (dtype, ("q", "up"))


def test_a_checkpoint_of_an_adapter_is_read_from_its_base_too(tmp_path):
    step = tmp_path / "run/checkpoints/7"
    for folder in (step / "state", tmp_path / "run/model"):
        folder.mkdir(parents=True)
    assert load_models.sources(str(step), "adapter") == (str(step), "adapter")
    (tmp_path / "run/model/adapter.json").write_text(json.dumps({"base": "base"}))
    assert load_models.sources(str(step), "adapter") == (str(step), "base", "adapter")
    assert load_models.sources("model") == ("model",) and load_models.sources("") == ()
