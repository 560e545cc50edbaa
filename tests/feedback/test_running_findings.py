"""Findings while a run trains: runs that are made to have one say so, each once, and the same runs mended do not."""

import json
import random
import sys

import numpy as np
import pytest
import tiny_farm
from wide import wide

import rlhf_jax as rj
from rlhf_jax.data.records.records import write_parquet
from rlhf_jax.evaluation.doctor.examine import examine_run
from rlhf_jax.feedback.running_findings import FindingsWriter
from rlhf_jax.programs import load_program
from rlhf_jax.training.loop.metrics import JsonlWriter

WORDS = ["sock", "hat", "apple", "river", "stone", "lamp", "bread", "cloud"]
ALIKE = {"epochs": 3.0, "beta": 0.1, "optimizer.learning_rate": 0.01}
PAIRS = {"epochs": 1.5, "data.eval_rows": 60, "optimizer.learning_rate": 0.01, "center_on": ""}
FAST = {
    "missing_eos_penalty": 0.0,
    "steps": 12,
    "optimizer.schedule": "constant",
    "optimizer.learning_rate": 0.02,
}
NOTHING_TO_LEARN = {"rewards without variance", "sampler and trainer apart"}
REWARDS = """
def same(prompts, responses):
    return [1.0 for _ in responses]

def letters(prompts, responses):
    return [float(len(set(text))) for text in responses]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("findings")
    (made / "rewards_that_differ.py").write_text(REWARDS)
    rng = random.Random(0)
    alike = [{"instruction": f"Name a thing {i}", "input": "", "preference": 1.0} for i in range(64)]
    for row in alike:
        # Of two words the one that stands earlier in the list; all else is the same on both sides.
        better, worse = sorted(rng.sample(WORDS, 2), key=WORDS.index)
        row |= {"output_1": f"the {better} is here", "output_2": f"the {worse} is here"}
    write_parquet(made / "alike.parquet", alike)
    for name in ("length", "yes"):
        write_parquet(made / f"{name}.parquet", [said(name, i, rng) for i in range(160)])
    sys.path.insert(0, str(made))
    yield made
    sys.path.remove(str(made))


def said(by, i, rng):
    """A pair whose label is that of the longer output, or of the one that begins with yes, whatever its length."""
    counts = rng.sample(range(2, 8), 2)
    texts = [" ".join(rng.choice(WORDS[:4]) for _ in range(n)) for n in counts]
    best = counts.index(max(counts)) if by == "length" else rng.randrange(2)
    if by == "yes":
        texts = [f"{'yes' if k == best else 'no'} {text}" for k, text in enumerate(texts)]
    row = {"instruction": f"Say {i % 40}", "input": "", "preference": best + 1.0}
    return row | {"output_1": texts[0], "output_2": texts[1]}


def train(job, farm, workdir, **changes):
    """Runs a page: names of the findings at its end."""
    page = tiny_farm.settings(job, farm, **changes)
    load_program(page).run(page, str(workdir))
    found = rj.open_run(workdir).findings()
    assert [one.as_dict() for one in found] == json.loads((workdir / "findings.json").read_text())["findings"]
    return {one.name for one in found}


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("finding (")]


def test_dpo_whose_chosen_logprobs_fall(folder, farm, tmp_path, capsys):
    how = ALIKE | {"data.train": str(folder / "alike.parquet")}
    assert train("dpo", farm, tmp_path / "dpo", **how) == {"chosen log-probs fall"}
    told = lines(capsys)
    assert len(told) == 1 and told[0].startswith("finding (note): chosen log-probs fall: log-prob of chosen")
    assert "sft_coef=0.0, beta=0.1, optimizer.learning_rate=0.01" in told[0]
    # It is so: on the held-out pairs, from before the first step to the last one.
    last = tiny_farm.rows(tmp_path / "dpo")[-1]
    assert last["eval/rewards/chosen"] < -0.5 and last["eval/rewards/rejected"] < last["eval/rewards/chosen"]


@wide
def test_with_the_setting_that_the_finding_names_they_do_not_fall(folder, farm, tmp_path, capsys):
    """The NLL of chosen responses beside DPO's loss."""
    how = ALIKE | {"data.train": str(folder / "alike.parquet"), "sft_coef": 1.0, "sft_nll": "sum"}
    assert train("dpo", farm, tmp_path / "rpo", **how) == set() and lines(capsys) == []
    assert tiny_farm.rows(tmp_path / "rpo")[-1]["eval/rewards/chosen"] > 0


@wide
def test_a_reward_model_of_labels_that_are_length(folder, farm, tmp_path, capsys):
    name = 'reward model no better than "longer wins"'
    how = PAIRS | {"data.train": str(folder / "length.parquet")}
    found = train("reward_model", farm, tmp_path / "length", **how)
    assert name in found and sum(name in line for line in lines(capsys)) == 1
    rows = [row for row in tiny_farm.rows(tmp_path / "length") if "eval/longer_wins" in row]
    # Some words are two tokens, so that a longer text is not always more tokens.
    assert all(row["eval/longer_wins"] == rows[0]["eval/longer_wins"] > 0.8 for row in rows)
    assert rows[-1]["eval/rewards/accuracies"] > 0.8


@wide
def test_a_reward_model_of_labels_that_are_not(folder, farm, tmp_path, capsys):
    how = PAIRS | {"data.train": str(folder / "yes.parquet"), "epochs": 2.0}
    assert train("reward_model", farm, tmp_path / "yes", **how) == set() and lines(capsys) == []


def test_ppo_with_equal_rewards_and_a_sampler_behind(folder, farm, tmp_path, capsys):
    sick = {"reward.sources": "function=rewards_that_differ:same", "rollout.staleness": 2}
    found = train("ppo", farm, tmp_path / "ppo", **FAST, **sick)
    assert found >= NOTHING_TO_LEARN | {"updates are clipped"}
    told = lines(capsys)
    assert len(told) == len({line.split(": ")[1] for line in told}) >= len(found)
    assert any("the sampler is 2 updates behind" in line for line in told)
    rows = [row for row in tiny_farm.rows(tmp_path / "ppo") if "objective/scores_std" in row]
    assert rows[-1]["objective/scores_std"] == 0 and rows[-1]["sampling/logp_difference"] > 0.05


@wide
def test_ppo_with_rewards_that_differ_and_a_sampler_at_its_side(folder, farm, tmp_path):
    mended = {"reward.sources": "function=rewards_that_differ:letters"}
    assert not train("ppo", farm, tmp_path / "ppo", **FAST, **mended) & NOTHING_TO_LEARN


# What a writer does, on rows as a loop writes them.


def rows_of(steps, drifts_from=30):
    """Responses that grow from a step on, evaluated every ten steps."""
    for step in range(1, steps + 1):
        length = 40 + max(0, step - drifts_from)
        yield step, {"completions/mean_length": float(length), "completions/ended": 1.0, "loss": float("nan")}
        if step % 10 == 0:
            yield step, {"eval/completions/mean_length": float(length), "timing_s/eval": 0.1}


def tell(folder, rows, start=None, stop=999):
    """Writes rows up to a step as a run does that goes on from `start`."""
    folder.mkdir(exist_ok=True)
    writers = [JsonlWriter(folder / "metrics.jsonl"), FindingsWriter(folder, {"job": "ppo", "kl_coef": 0.1})]
    for writer in writers:
        writer.start(start)
    for step, values in rows:
        if (start or 0) < step <= stop:
            for writer in writers:
                writer.write(step, values)
    for writer in writers:
        writer.close()
    return (folder / "findings.json").read_text()


def test_a_finding_is_told_once_and_a_resumed_run_ends_alike(tmp_path, capsys):
    whole, rows = tmp_path / "whole", list(rows_of(80))
    written = tell(whole, rows)
    told = lines(capsys)
    assert len(told) == 1 and "length drifts" in told[0] and "kl_coef=0.1" in told[0]
    assert json.loads(written)["first_seen"] == {"length drifts": 60} and json.loads(written)["step"] == 80
    for killed, goes_on, again in ((75, 70, 0), (75, 50, 1), (35, 30, 1)):
        folder = tmp_path / f"{killed} {goes_on}"
        tell(folder, rows, stop=killed)
        capsys.readouterr()
        assert tell(folder, rows, start=goes_on) == written
        # Told again only where it is found again.
        assert len(lines(capsys)) == again
    # A run that begins anew in the folder knows nothing of the other, from its start on.
    FindingsWriter(whole, {}).start(None)
    assert not (whole / "findings.json").exists()
    assert json.loads(tell(whole, list(rows_of(10))))["findings"] == [] and lines(capsys) == []


def test_what_goes_wrong_ends_no_run(tmp_path, capsys):
    (tmp_path / "findings.json").mkdir()
    writer = FindingsWriter(tmp_path, {"job": "ppo"})
    writer.start(None)
    for step, values in rows_of(80):
        writer.write(step, values)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("notice: findings: ")]
    assert len(said) == 1


def test_a_long_run_is_looked_at_in_a_moment(tmp_path):
    writer, kept, rng = FindingsWriter(tmp_path, {"job": "ppo"}), [], np.random.default_rng(0)
    for step in range(9000):
        values = {"completions/mean_length": 40 + step / 200, "objective/entropy": 2 * 0.9996**step}
        row = {name: x * (1 + 0.1 * rng.normal()) for name, x in values.items()}
        writer.write(step, row | {"perf/mfu": 0.5})
        kept.append({"step": step, **row})
    # What no rule reads is not kept; what is kept reaches from the first step to the last.
    assert len(writer._rows) <= 4096 and writer._rows[-1].keys() == kept[-1].keys()
    assert (writer._rows[0]["step"], writer._rows[-1]["step"]) == (0, 8999)
    # Thinned rows say what all of them say.
    found = [{x.name for x in examine_run(rows)} for rows in (writer._rows, kept)]
    assert found[0] == found[1] == {"length drifts", "entropy collapses"}
