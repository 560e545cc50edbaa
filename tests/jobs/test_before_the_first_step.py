"""What a run says before its first step, and that one that cannot fit ends there, with settings that would help."""

import importlib
import itertools
import re

import jax
import pytest
import tiny_farm
from wide import wide

from rlhf_jax.errors import UserError
from rlhf_jax.programs import program
from rlhf_jax.training.run import load_models, memory_check


@pytest.mark.parametrize(
    "job", ["dpo", "ppo", *(pytest.param(x, marks=wide) for x in ("sft", "reward_model"))]
)
def test_a_run_that_cannot_fit_ends_before_weights_are_read(job, farm, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("weights were read")

    candidates = memory_check._candidates
    few = {"sft": 4, "ppo": 2}.get(job, 1)  # each is compiled
    monkeypatch.setattr(memory_check, "_candidates", lambda *x: itertools.islice(candidates(*x), few))
    monkeypatch.setattr(memory_check, "available", lambda: 0)
    monkeypatch.setattr(load_models, "load_model", never)
    config = tiny_farm.settings(job, farm, **{"model.init": str(farm / "sft/export")} if job == "sft" else {})
    with pytest.raises(UserError) as error:
        program(job).run(config, str(tmp_path))
    said = str(error.value)
    assert re.match(
        r"memory: [a-z ]+ needs 0\.\d\d GiB on each device, 0\.00 GiB are there; what helps most: ", said
    )
    settings = re.findall(r"--config\.([\w.]+)=(\S+) \((\d+\.\d+) GiB\)", said)
    assert 1 <= len(settings) <= 3
    pages = tiny_farm.flat(config)
    for name, value, _ in settings:
        assert str(pages[name]) != value, name  # each is a change of a field that there is
    assert [size for *_, size in settings] == sorted(size for *_, size in settings)


def test_the_settings_that_would_help_do(farm, tmp_path, monkeypatch):
    """With the best of the settings the same run needs what was said; packed, it may lay its rows out anew for less."""

    def asked(changes):
        fixed = {"batch_size": 32, "microbatches": 1, "data.packing": "off"}
        config = tiny_farm.settings("dpo", farm, **fixed | changes)
        with pytest.raises(UserError) as error:
            importlib.import_module("rlhf_jax.methods.dpo").run(config, str(tmp_path))
        return config, str(error.value)

    candidates = memory_check._candidates
    monkeypatch.setattr(memory_check, "_candidates", lambda *x: itertools.islice(candidates(*x), 2))
    monkeypatch.setattr(memory_check, "available", lambda: 0)
    monkeypatch.setattr(memory_check, "_gib", lambda size: f"{size} B")
    config, said = asked({})
    name, value, size = re.findall(r"--config\.([\w.]+)=(\S+) \((\d+) B\)", said)[0]
    kind = type(tiny_farm.flat(config)[name])
    _, then = asked({name: kind(value)})
    assert re.search(r"needs (\d+) B", then)[1] == size
    assert int(size) < int(re.search(r"needs (\d+) B", said)[1])


def test_a_rollout_that_is_too_large_is_told_of_its_parts(farm, tmp_path, monkeypatch):
    candidates, only = memory_check._candidates, "rollout.microbatches"
    monkeypatch.setattr(
        memory_check,
        "_candidates",
        lambda *x: (found for found in candidates(*x) if found[0].startswith(only)),
    )
    monkeypatch.setattr(memory_check, "available", lambda: 0)
    monkeypatch.setattr(memory_check, "_gib", lambda size: f"{size} B")
    large = {"rollout.batch_size": 64, "minibatch_size": 4, "rollout.max_new_tokens": 40}
    with pytest.raises(UserError) as error:
        program("ppo").run(tiny_farm.settings("ppo", farm, **large), str(tmp_path))
    whole, parts = re.search(
        r"needs (\d+) B on each .* helps most: --config\.rollout\.microbatches=64 \((\d+) B\)",
        str(error.value),
    ).groups()
    assert int(parts) < 0.8 * int(whole)


@pytest.mark.parametrize(
    ("said", "used"),
    [
        (
            "Ran out of memory in memory space hbm. Used 27.50G of 15.75G hbm. Exceeded hbm capacity by 11.8G.",
            27.5,
        ),
        ("Ran out of memory on HBM: HLO temporaries (18.32G) exceeds available HBM (15.75G).", 18.32),
    ],
)
def test_what_the_compiler_refuses_as_too_large_has_a_size(said, used, monkeypatch):
    class Refused(jax.stages.Lowered):
        def __init__(self):
            pass

        def compile(self):
            raise jax.errors.JaxRuntimeError(said)

    with pytest.raises(jax.errors.JaxRuntimeError):
        memory_check.compiled_needs(Refused())
    said = f"RESOURCE_EXHAUSTED: {said}"
    needs, compiled = memory_check.compiled_needs(Refused())
    assert compiled is None and needs.total == int(used * 2**30)


def test_what_a_run_says(farm, tmp_path, capsys):
    config = tiny_farm.settings("sft", farm, epochs=0.04)
    importlib.import_module("rlhf_jax.methods.sft").run(config, str(tmp_path))
    said = capsys.readouterr().out
    assert re.search(r"train step: 0\.0M parameters, \d\.\d+e\+0[67] FLOPs; compiled in \d+\.\d s", said), (
        said
    )
    assert re.search(
        r"memory per device: \d+\.\d\d GiB needed \(train step: arguments .*\), \d+\.\d\d GiB there", said
    )


def test_reading_and_writing_a_large_model_are_watched(farm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load_models, "_LARGE", 1)
    config = tiny_farm.settings("sft", farm, epochs=0.04, **{"model.init": str(farm / "sft/export")})
    importlib.import_module("rlhf_jax.methods.sft").run(config, str(tmp_path))
    said = capsys.readouterr().out
    for what in (f"reading {farm}/sft/export", f"writing {tmp_path}/export"):
        assert f"{what}, million parameters 0/0" in said
