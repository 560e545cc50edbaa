"""Trainers with an adapter: they start at the base model, keep state for the adapter only, and resume to the bit."""

import json
import math

import jax
import numpy as np
import observed
import pytest
import tiny_farm
from safetensors.numpy import load_file
from wide import wide

from rlhf_jax.data.records.records import read_table
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import score
from rlhf_jax.methods import ppo
from rlhf_jax.models import lora, peft
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.models.lora import joined
from rlhf_jax.models.model import Model
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop import loop
from rlhf_jax.training.loop.program_costs import bytes_per_device
from rlhf_jax.training.run import load_models, memory_check, online
from rlhf_jax.training.run.online_models import OnlineModels, Scorer

LORA = {"lora.rank": 3, "lora.alpha": 6.0, "lora.targets": "all"}
CHANGES = {
    "sft": {"epochs": 0.32},
    "reward_model": {},
    "dpo": {},
    "ppo": {"steps": 5, "epochs": 1, "minibatch_size": 8, "best_metric": ""},
}


def config(job, farm, **changes):
    start = {"model.init": str(farm / "sft/export")} if job == "sft" else {}
    return tiny_farm.settings(job, farm, **(LORA | start | CHANGES[job] | changes))


def run(job, settings, workdir, **stop):
    """Runs a trainer; the last state of its loop, None where it was stopped."""
    states, loop_run = [], loop.run_loop

    def watched(*args, **options):
        states.append(loop_run(*args, **options))
        return states[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run_loop", watched)
        observed.run(job, settings, workdir, **stop)
    return states[0] if states else None


def exports(workdir):
    """The bits of all that is exported."""
    files = [workdir / name for name in ("export/model.safetensors", "adapter/adapter_model.safetensors")]
    return [{k: x.tobytes() for k, x in load_file(f).items()} for f in files]


def elements(tree):
    return sum(x.size for x in jax.tree.leaves(tree) if x.ndim)


@pytest.fixture(scope="module", params=tiny_farm.TRAINERS)
def done(request, farm, tmp_path_factory):
    """(job, workdir of a whole run, its last state)."""
    workdir = tmp_path_factory.mktemp(request.param)
    return request.param, workdir, run(request.param, config(request.param, farm), workdir)


def test_state_and_checkpoints_hold_the_adapter_only(done, farm):
    """Two moments for each number of an adapter (and of a score head), and nothing of the size of the base."""
    job, workdir, state = done
    models = state.params.values() if job == "ppo" else [state.params]
    for params in models:
        assert {name for name in params if name != "score"} == {"layers"}
        names = [x for group in params["layers"].values() for x in group]
        assert names and all("_lora_" in name for name in names)
        assert ("score" in params) == (job == "reward_model" or params is state.params.get("value"))
    assert elements(state.opt_state) == 2 * elements(state.params)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    (newest, *_) = sorted(workdir.glob("checkpoints/*/state/_METADATA"))[-1:]
    saved = json.loads(newest.read_text())["tree_metadata"]
    saved = [tuple(key["key"] for key in leaf["key_metadata"]) for leaf in saved.values()]
    arrays = [path for path in saved if {"params", "mu", "nu"} & set(path)]
    # An optimizer in parts marks with the other model's name that it keeps nothing for it.
    assert all("_lora_" in path[-1] or path[-1] in ("score", "policy", "value") for path in arrays)
    assert sum(path[0] == "params" for path in arrays) == len(jax.tree.leaves(state.params))


def test_the_first_step_is_the_base_model_exactly(done):
    job, workdir, _ = done
    first = tiny_farm.rows(workdir)[0]
    if job == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), abs=2e-7) and abs(first["rewards/margins"]) < 1e-6
    elif job == "ppo":
        row = next(row for row in tiny_farm.rows(workdir) if "policy/ratio" in row)
        assert row["policy/ratio"] == pytest.approx(1, abs=1e-6) and row["policy/approxkl"] < 1e-10
        # One minibatch is all of a rollout: the update reads the policy, and another program the reference.
        assert abs(row["objective/kl"]) < 2e-6 and row["val/mean"] == 0
    assert any(row.get("grad_norm", 0) > 0 for row in tiny_farm.rows(workdir))


def test_the_export_is_the_adapter_merged_into_the_base(done, farm):
    job, workdir, state = done
    base_config, base = import_folder.load(farm / "sft/export")
    exported, whole = import_folder.load(workdir / "export")
    found = peft.load(workdir / "adapter", base_config.config)
    assert found.lora.rank == 3 and found.lora.alpha == 6.0
    trained = state.params["policy"] if job == "ppo" else state.params
    for group, leaves in found.adapter["layers"].items():
        for name, x in leaves.items():
            np.testing.assert_array_equal(x, trained["layers"][group][name])
    kernel = np.asarray(base["layers"]["mlp"]["down"], np.float64)
    leaves = found.adapter["layers"]["mlp"]
    kernel += 2.0 * (leaves["down_lora_a"].astype(np.float64) @ leaves["down_lora_b"])
    np.testing.assert_allclose(whole["layers"]["mlp"]["down"], kernel, rtol=1e-5, atol=1e-6)
    assert np.abs(whole["layers"]["mlp"]["down"] - base["layers"]["mlp"]["down"]).max() > 1e-5
    np.testing.assert_array_equal(whole["embed"], base["embed"])  # frozen
    assert exported.is_scalar == (job == "reward_model")
    if exported.is_scalar:
        np.testing.assert_array_equal(found.score, whole["score"])


def test_a_run_that_was_interrupted_ends_with_the_same_bits(done, farm, tmp_path):
    job, workdir, _ = done
    assert run(job, config(job, farm), tmp_path, stop_before=4 if job == "ppo" else 3) is None
    run(job, config(job, farm), tmp_path)
    assert exports(tmp_path) == exports(workdir)
    assert tiny_farm.rows(tmp_path) == tiny_farm.rows(workdir)


def test_ppo_has_one_copy_of_each_base(farm, tmp_path, monkeypatch):
    """The reference is the policy's frozen part, the value model's is the reward model's trunk: the same arrays."""
    seen, make = [], online.make_iteration

    def noted(session, prompts, learner, after, step, frozen):
        seen.append((learner.roll_out.__self__, frozen))
        return make(session, prompts, learner, after, step, frozen)

    monkeypatch.setattr(online, "make_iteration", noted)
    run("ppo", config("ppo", farm, steps=1), tmp_path)
    ((actor, frozen),) = seen
    reference, reward = actor.frozen["reference"].params, actor.rewards.reward.model.params
    assert reference["embed"] is frozen["policy"]["embed"]
    for path, x in jax.tree_util.tree_leaves_with_path(frozen["policy"]):
        assert x is at(reference, path)
    for path, x in jax.tree_util.tree_leaves_with_path(frozen["value"]):
        assert x is at(reward, path)


def at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_an_adapter_that_is_given_is_trained_further_or_merged(farm, tmp_path):
    """DPO from base + adapter: ln 2 at first in both ways, as the reference is the model with it."""
    run("dpo", config("dpo", farm), tmp_path / "first")
    adapter = str(tmp_path / "first/adapter")
    state = run("dpo", config("dpo", farm, **{"model.adapter": adapter}), tmp_path / "further")
    base, _ = import_folder.load(farm / "sft/export")
    given = peft.load(adapter, base.config).adapter["layers"]["mlp"]["up_lora_b"]
    assert np.abs(np.asarray(state.params["layers"]["mlp"]["up_lora_b"]) - given).max() > 0
    run("dpo", config("dpo", farm, **{"model.adapter": adapter, "lora.rank": 0}), tmp_path / "merged")
    firsts = [tiny_farm.rows(tmp_path / name)[0] for name in ("further", "merged")]
    for row in firsts:
        assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    plain = tiny_farm.rows(tmp_path / "first")[0]["logps/chosen"]
    assert firsts[0]["logps/chosen"] == pytest.approx(firsts[1]["logps/chosen"], rel=1e-5) != plain
    assert not (tmp_path / "merged/adapter").exists()
    with pytest.raises(UserError, match=r"lora.rank: 2, but model.adapter has 3"):
        run("dpo", config("dpo", farm, **{"model.adapter": adapter, "lora.rank": 2}), tmp_path / "other")


def test_an_adapter_over_its_base_scores_and_samples_as_the_merged_model(farm, tmp_path):
    run("reward_model", config("reward_model", farm, center_on=""), tmp_path / "reward")
    over = {"model.path": str(farm / "sft/export"), "model.adapter": str(tmp_path / "reward/adapter")}
    score.run(tiny_farm.settings("score", farm, **over), str(tmp_path / "over"))
    merged = {"model.path": str(tmp_path / "reward/export")}
    score.run(tiny_farm.settings("score", farm, **merged), str(tmp_path / "merged"))
    one, two = (
        np.array([r["scores"] for r in read_table(tmp_path / n / "scores.parquet")], float)  # null: nan
        for n in ("over", "merged")
    )
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert np.nanstd(one) > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora.rank": 400}, "lora.rank: 400; no kernel of this model has a rank above"),
        ({"model.init": ""}, "lora.rank: 3, but there is no model to adapt; set model.init"),
        ({"model.adapter": "nowhere"}, "model.adapter: nowhere: no such folder"),
    ],
)
def test_settings_that_cannot_be(changes, said, farm, tmp_path):
    settings = config("sft", farm)
    settings.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=said):
        run("sft", settings, tmp_path)


def test_merged_model_of_a_joined_tree_is_the_plain_tree(farm):
    found, base = import_folder.load(farm / "sft/export")
    assert lora.merged(found.config, joined(base, {})).keys() == base.keys()


def test_a_checkpoint_of_an_adapter_is_taken_with_the_model_that_it_lies_over(farm, tmp_path):
    """DPO of an adapter from an adapter's checkpoint: merged, or trained further; and a reward model's, for PPO."""
    run("dpo", config("dpo", farm), tmp_path / "first")
    page = {"model.init": str(tmp_path / "first")}
    run("dpo", config("dpo", farm, **page, reference_cache=str(tmp_path / "cache")), tmp_path / "further")
    run("dpo", config("dpo", farm, **page, **{"lora.rank": 0}), tmp_path / "merged")
    export = {"model.init": str(tmp_path / "first/export"), "lora.rank": 0}
    run("dpo", config("dpo", farm, **export), tmp_path / "export")
    further, merged, exported = (tiny_farm.rows(tmp_path / x)[0] for x in ("further", "merged", "export"))
    for row in (further, merged):
        assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert row["logps/chosen"] == pytest.approx(exported["logps/chosen"], rel=1e-5)
    assert (
        abs(further["logps/chosen"] - tiny_farm.rows(tmp_path / "first")[0]["logps/chosen"]) > 1e-4
    )  # not the bare base
    raw = json.loads((tmp_path / "further/adapter/adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] == str(farm / "sft/export")
    with pytest.raises(UserError, match=r"is the checkpoint of an adapter itself"):
        run("dpo", config("dpo", farm, **page, **{"model.adapter": str(tmp_path)}), tmp_path / "both")
    run("reward_model", config("reward_model", farm, center_on=""), tmp_path / "reward")
    scores = []
    for name in ("reward", "reward/export"):
        folder = load_models.resolve_folder(str(tmp_path / name))
        found, params = load_models.load_model(
            folder, config("dpo", farm).model, make_mesh(1, 1, 1), "", tokens=0
        )
        assert found.is_scalar and ("head" not in params)
        scores.append(load_models.merged_params(found.config, params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *scores)


def test_an_adapter_costs_no_optimizer_state_or_gradient_for_its_base(farm):
    """Of the plan, which is all that is known before weights are read."""
    found, _ = import_folder.load(farm / "sft/export")
    mesh = make_mesh(1, 1, 1)
    models = OnlineModels(
        found.config, (Scorer(Model(found.config, {})),), {"value": found.config}, ("value",)
    )
    whole, adapted = (
        ppo.ppo_plan(models, 8, 0, config("ppo", farm, **{"lora.rank": rank}), mesh) for rank in (0, 3)
    )
    assert not jax.tree.leaves(whole.frozen)
    trained = bytes_per_device(adapted.state.params)
    assert bytes_per_device(adapted.state.opt_state) == pytest.approx(2 * trained, abs=64)
    assert bytes_per_device((adapted.state.params, adapted.frozen)) > bytes_per_device(whole.state.params)
    assert bytes_per_device(adapted.frozen) < bytes_per_device(whole.state.params)
    # The reference's adapter and the reward model's score head; the rest of both is what is frozen anyway.
    head = bytes_per_device(adapted.state.params["value"]["score"])
    assert adapted.beside == bytes_per_device(adapted.state.params["policy"]) + head
    assert adapted.beside < whole.beside == bytes_per_device(whole.state.params)
    assert memory_check.needed(adapted) < memory_check.needed(whole)


@pytest.mark.parametrize("job", ["reward_model", pytest.param("ppo", marks=wide)])
def test_a_base_kept_in_the_dtype_of_computing_is_the_same_run(farm, tmp_path, job, monkeypatch):
    """Half the bytes and the same numbers; norms, score heads and what is trained stay float32."""
    plans, prepare = [], memory_check.prepare_step

    def watched(*args):
        plans.append(prepare(*args))
        return plans[-1]

    monkeypatch.setattr(memory_check, "prepare_step", watched)
    short = {"model.dtype": "bfloat16"} | ({"steps": 2, "eval_every": 2} if job == "ppo" else {"epochs": 0.5})
    for dtype in ("float32", "bfloat16"):
        run(job, config(job, farm, **short, **{"lora.base_dtype": dtype}), tmp_path / dtype)
    wanted, found = (tiny_farm.rows(tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    if job == "ppo":  # whose sampling merges the adapter into the base, which then is rounded before, too
        wanted, found = ([row for row in rows if row["step"] < 2] for rows in (wanted, found))
    else:
        assert exports(tmp_path / "float32")[1] == exports(tmp_path / "bfloat16")[1]
    assert wanted == found
    assert any({"reward_model": "grad_norm", "ppo": "objective/scores"}[job] in row for row in found)
    whole, half = (
        {
            jax.tree_util.keystr(path): (x.dtype.name, bytes_per_device(x))
            for path, x in jax.tree_util.tree_leaves_with_path(plan.frozen)
        }
        for plan in plans
    )
    assert {dtype for dtype, _ in whole.values()} == {"float32"}
    for name, (dtype, size) in half.items():
        assert (dtype, size) == (
            ("float32", whole[name][1]) if "norm" in name else ("bfloat16", whole[name][1] // 2)
        )
    assert plans[0].beside >= plans[1].beside
