"""The frozen reference of DPO: kept on disk by what it depends on, or computed with every step; the same numbers."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny_farm
from safetensors.numpy import load_file, save_file

from rlhf_jax.data.batches import Pairs, Sequences
from rlhf_jax.data.records.records import read_table, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.methods import dpo
from rlhf_jax.training.run import load_models, offline, reference_logprobs
from rlhf_jax.training.run.encoded_rows import Rows


@pytest.fixture(scope="module")
def model(farm, tmp_path_factory):
    """A copy of the SFT model that tests may change."""
    folder = tmp_path_factory.mktemp("model") / "export"
    shutil.copytree(farm / "sft/export", folder)
    return folder


def looked_up(farm, folder, cache, **changes):
    """Whether the reference was computed, by a run that ends before it compiles a step."""

    def only_load(session, network, method):
        start = load_models.start_network(network.config, network.read(), session.lora, session.mesh, 0)
        method.complete(start)
        raise UserError("enough")

    computed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "train_offline", only_load)
        with pytest.raises(UserError, match=r"^enough$"):
            run(farm, folder, cache, computed, **changes)
    return bool(computed)


def run(farm, folder, cache, computed=None, **changes):
    """(rows of metrics, whether the reference was computed); `computed` also gets what was, if the run ends early."""
    computed, original = [] if computed is None else computed, reference_logprobs._computed

    def watched(*args):
        computed.append(args)
        return original(*args)

    config = tiny_farm.settings("dpo", farm, **{"epochs": 0.2, "reference_cache": str(cache)} | changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_logprobs, "_computed", watched)
        dpo.run(config, str(folder))
    return tiny_farm.rows(folder), bool(computed)


def test_a_second_run_reads_what_the_first_computed(farm, tmp_path):
    cache = tmp_path / "cache"
    first, computed = run(farm, tmp_path / "one", cache)
    assert computed and len(list(cache.iterdir())) == 2  # training and held-out pairs
    again, computed = run(farm, tmp_path / "two", cache, beta=0.05, log_every=1)
    assert not computed and again == first
    stepwise, computed = run(farm, tmp_path / "three", tmp_path / "unused", reference="step")
    assert not computed and not (tmp_path / "unused").exists()
    for a, b in zip(stepwise, first, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=5e-6)
    assert first[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)  # it starts from its reference
    for path in cache.iterdir():  # cut off, as by a full disk
        path.write_bytes(path.read_bytes()[:100])
    rows, computed = run(farm, tmp_path / "four", cache)
    assert computed and rows == first


def other_weights(farm, model):
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * np.float32(1.5)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return {}


def other_tokenizer(farm, model):
    """One merge less: other token ids of the same text."""
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    return {}


def other_pairs(farm, model):
    rows = read_table(farm / "labels/labels.parquet")
    rows[0]["output_1"] += "!"
    path = model.parent / "labels.parquet"
    write_parquet(path, rows)
    return {"data.train": str(path)}


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        other_tokenizer,
        other_pairs,
        lambda farm, model: {"data.max_length": 88},
        lambda farm, model: {"model.dtype": "bfloat16"},
    ],
    ids=["weights", "tokenizer", "pairs", "lengths", "dtype"],
)
def test_whatever_it_depends_on_makes_it_anew(change, farm, model, tmp_path):
    cache, copy = tmp_path / "cache", tmp_path / "model"
    shutil.copytree(model, copy)
    assert looked_up(farm, tmp_path / "one", cache, **{"model.init": str(copy)})
    before = {path.name for path in cache.iterdir()}
    changes = change(farm, copy)
    assert looked_up(farm, tmp_path / "two", cache, **{"model.init": str(copy)} | changes)
    assert {path.name for path in cache.iterdir()} > before


def test_how_an_adapter_and_its_base_are_kept_makes_it_anew(farm, tmp_path):
    adapter = {"lora.rank": 2}
    half = adapter | {"lora.base_dtype": "bfloat16"}
    found = [
        looked_up(farm, tmp_path / str(i), tmp_path / "cache", **x)
        for i, x in enumerate((adapter, half, half))
    ]
    assert found == [True, True, False]


def test_both_sides_of_a_pair_are_part_of_what_it_depends_on(farm):
    lengths = np.array([3, 4])
    side = Sequences(np.arange(7, dtype=np.int32), np.array([0, 3, 7]), np.array([1, 2], np.int32))
    rows = Rows(2, lengths, lambda index_B, rows: {})
    other = dataclasses.replace(side, tokens=side.tokens[::-1].copy())
    found = [
        reference_logprobs._fingerprint((), tiny_farm.model_config(), "", Pairs(*both), rows)
        for both in ((side, side), (other, side), (side, other), (other, other))
    ]
    assert len(set(found)) == 4


def test_a_kept_file_counts_if_it_is_whole_and_finite(tmp_path):
    room = {name: np.zeros(3, np.float32) for name in reference_logprobs.PAIRS.names}
    for values, wanted in (
        ([1, 2, 3], True),
        ([1, np.nan, 3], False),
        ([1, 2], False),
        ([1, -np.inf, 2], False),
    ):
        values = np.float32(values)
        reference_logprobs._write(
            tmp_path / "kept.npz", {"ref_chosen": 0 * room["ref_chosen"], "ref_rejected": values}
        )
        found = reference_logprobs._read(tmp_path / "kept.npz", room)
        assert (found is not None) == wanted
        assert not wanted or found["ref_rejected"].tolist() == values.tolist()


def test_the_plan_counts_the_copy_that_a_reference_in_every_step_needs(farm, tmp_path):
    """It is as large as what is trained; log-probs that were computed before take no second model."""
    beside = {}

    def only_plan(session, network, method):
        plan = offline.offline_plan(network, method, 10, session.config, session.mesh)
        beside[session.config.reference] = plan.beside, [phase.name for phase in plan.others]
        raise UserError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "train_offline", only_plan)
        for reference in ("cached", "step"):
            with pytest.raises(UserError, match=r"^enough$"):
                run(farm, tmp_path / reference, tmp_path / "cache", reference=reference)
    weights = load_file(farm / "sft/export/model.safetensors").values()
    assert beside == {"cached": (0, []), "step": (4 * sum(x.size for x in weights), ["reference"])}


def test_an_unknown_way_is_named(farm, tmp_path):
    with pytest.raises(UserError, match="reference: 'never'; use one of cached, step"):
        run(farm, tmp_path, tmp_path, reference="never")
