"""Evaluations go by length: every held-out row counts as in the order of the file, in fewer places of arrays."""

import jax
import numpy as np
import pytest
import tiny_farm
from tiny_losses import CONFIG

from rlhf_jax.data.batches import Pairs, Sequences, flattened
from rlhf_jax.data.candidate_arrays import Candidates
from rlhf_jax.methods import dpo, reward_model, rrhf, sft
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop.step import make_evaluator
from rlhf_jax.training.rows import labelled_rows, shared_prompt_rows
from rlhf_jax.training.run import encoded_rows, offline
from rlhf_jax.training.run.encoded_rows import Split

B, N, T = 4, 42, 48  # rows of a batch, rows of a quarter to all of T tokens; the last batch is half full


def drawn(seed, prompts=None):
    """Sequences behind their own prompts, or behind these."""
    rng = np.random.default_rng(seed)
    rows, heads = [], []
    for i in range(N):
        prompt = rng.integers(3, 40, rng.integers(2, 9)) if prompts is None else prompts[i]
        rows.append(np.int32([*prompt, *rng.integers(3, 40, rng.integers(T // 4, T + 1) - len(prompt))]))
        heads.append(len(prompt))
    return Sequences(*flattened(rows), np.int32(heads))


def drawn_pairs():
    chosen = drawn(0)
    prompts = [chosen[i][:n] for i, n in enumerate(chosen.prompt_lengths)]
    return Pairs(chosen, drawn(1, prompts))


def pair_rows(share):
    found = drawn_pairs()
    page = tiny_farm.settings("dpo", "farm", **{"data.share_prompts": share}).data
    return shared_prompt_rows.pair_rows(Split(found, found, []), page, 0, 0, CONFIG)


def rows_of(kind):
    """(held-out rows, the loss)."""
    if kind == "sft":
        page = tiny_farm.settings("sft", "farm", **{"data.packing": "off"}).data
        _, held, R = encoded_rows.rows_of(Split(drawn(0), drawn(0), []), page, 0, 0)
        return held, sft.sft_loss_fn(CONFIG, R, 16)
    if kind.startswith("pairs"):
        _, held, R = pair_rows("on" if "shared" in kind else "off")
        reference = np.random.default_rng(2).normal(-99, 9, (2, N)).astype(np.float32)
        columns = {f"ref_{side}": x for side, x in zip(encoded_rows.SIDES, reference, strict=True)}
        return held.with_columns(columns), dpo.dpo_loss_fn(CONFIG, R, 16, beta=0.1)
    if kind == "prompts with pairs":
        _, held = labelled_rows.grouped_rows_of(Split(drawn_pairs(), drawn_pairs(), []), 0)
        return held, reward_model.reward_model_loss_fn(CONFIG)
    both, scores = drawn_pairs(), np.random.default_rng(3).normal(size=(N, 2)).astype(np.float32)
    found = Candidates(encoded_rows_alternating(both), np.arange(2 * N).reshape(N, 2), scores)
    _, held, R = labelled_rows.candidate_rows(Split(found, found, []), 0)
    return held, rrhf.rrhf_loss_fn(CONFIG, R, 16)


def encoded_rows_alternating(pairs):
    rows = [side[i] for i in range(N) for side in pairs]
    return Sequences(*flattened(rows), np.repeat(pairs.chosen.prompt_lengths, 2))


@pytest.mark.parametrize(
    "kind", ["sft", "pairs", "pairs, shared prompts", "prompts with pairs", "candidates"]
)
def test_the_means_are_those_of_rows_in_order_and_three_programs_compute_them(kind):
    held, loss_fn = rows_of(kind)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    params = tiny_farm.random_params(scalar=kind == "prompts with pairs", seed=1)
    found, places, programs = {}, {}, {}
    for name, rows in {"in order": held._replace(lengths=None), "by length": held}.items():
        traced = []

        def watched(params, batch, traced=traced):
            traced.append(batch)
            return loss_fn(params, batch)

        evaluate = make_evaluator(watched)
        batches = list(offline._eval_batches(rows, B, mesh))
        found[name] = evaluate(params, batches)
        assert evaluate(params, batches) == found[name]  # of the same programs
        programs[name] = len(traced)
        places[name] = sum(x.size for batch in batches for k, x in batch.items() if k.endswith("tokens"))
        assert sum(float(batch["weight"].sum()) for batch in batches) == N
    assert found["by length"] == pytest.approx(found["in order"], rel=1e-6, abs=1e-6)
    assert programs == {"in order": 1, "by length": 3}
    assert places["by length"] < 0.85 * places["in order"]


def test_a_run_measures_the_same_and_compiles_nothing_after_its_first_evaluation(farm, tmp_path):
    """Of rows that say no length, the batches are those of the file's order."""
    import observed

    curves = {}
    for name in ("by length", "in order"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "in order":
                patch.setattr(offline, "_EVERY", 99)
            changes = {"data.packing": "off", "data.eval_rows": 24, "batch_size": 4, "epochs": 0.24}
            _, compiles = observed.run("sft", tiny_farm.settings("sft", farm, **changes), tmp_path / name)
            curves[name] = [row for row in tiny_farm.rows(tmp_path / name) if "eval/loss" in row]
        assert compiles.at[4] > compiles.at[3] and compiles.at[5] == compiles.end
    assert len(curves["in order"]) >= 2
    for one, other in zip(curves["by length"], curves["in order"], strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
