"""Every page and variant builds, and no field of a page is decoration: its job reads it."""

import inspect
import re
from pathlib import Path

import found_suites
import pytest
import tiny_farm
from observed import assert_all_read, reads

from rlhf_jax.data.records.records import read_instructions, read_table, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import annotate, best_of_n, generate, inspect_data, make_data, score, weight_diff
from rlhf_jax.jobs.evaluate import leaderboard_job
from rlhf_jax.jobs.measure import measure_job
from rlhf_jax.programs import names, program
from rlhf_jax.settings import load_page

CONFIGS = tiny_farm.ROOT / "configs"
PAGES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "common")
# The papers' recipes, as papers/alpaca_farm/sft: pages of the jobs that their files are called by.
RECIPES = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("papers/*/*.py"))


def variants(page):
    """The names that a page gives its variants, as it lists them to somebody who asks for another."""
    with pytest.raises(UserError) as error:
        load_page(f"{CONFIGS}/{page}.py:no such variant")
    return re.search("variants: ([^;]+)", str(error.value))[1].split(", ")


def recipes(job):
    """The papers' recipes for a job."""
    return [recipe for recipe in RECIPES if Path(recipe).name == job]


@pytest.mark.parametrize("page", PAGES)
def test_every_variant_and_recipe_builds(page):
    default = load_page(f"{CONFIGS}/{page}.py")
    assert default.job in names()
    # The bandit is a figure of a paper, and no part of the world.
    assert variants(page)[0] == ("figure_6" if page == "bandit" else "microfarm")
    fields = tiny_farm.flat(default)
    for spec in [f"{page}.py:{name}" for name in variants(page)] + [f"{x}.py" for x in recipes(page)]:
        built = tiny_farm.flat(load_page(f"{CONFIGS}/{spec}"))
        # Variants of a study are studies of their own, with other groups of settings.
        assert built["job"] == default.job, spec
        assert default.job == "study" or set(built) == set(fields), spec
        for field, value in built.items():
            # Placeholders and lists could not be overridden on a command line.
            assert isinstance(value, bool | int | float | str | tuple), (field, value)
            assert type(value) is type(fields.get(field, value)), field


def test_every_job_has_a_page_and_a_run_function():
    assert set(names()) <= set(PAGES)
    for job in names():
        module = program(job)
        assert list(inspect.signature(module.run).parameters) == ["config", "workdir"]


def test_every_method_has_a_suite():
    """`MethodSuite` sees that a run of it reads every field of its page, of which a method may have several."""
    assert {load_page(f"{CONFIGS}/{page}.py").job for page in found_suites.jobs()} == set(tiny_farm.METHODS)


def test_generate_and_score_read_every_field(farm, tmp_path):
    read = reads(generate.run, tiny_farm.settings("generate", farm), str(tmp_path / "a"))
    diverse = {"beams": 4, "beam_groups": 2, "diversity_penalty": 0.5, "samples": 3, "data.rows": 3}
    read |= reads(generate.run, tiny_farm.settings("generate", farm, **diverse), str(tmp_path / "beams"))
    assert_all_read("generate", read)
    found = read_table(tmp_path / "beams/outputs.parquet")
    assert [len(row["outputs"]) for row in found] == [3, 3, 3] == [len(row["ended"]) for row in found]
    for row in found:
        assert row["beam_scores"] == sorted(row["beam_scores"], reverse=True) and row["beam_scores"][0] < 0
        assert len(set(row["outputs"])) > 1
    assert_all_read("score", reads(score.run, tiny_farm.settings("score", farm), str(tmp_path / "b")))


def test_best_of_n_reads_every_field(tmp_path):
    write_parquet(
        tmp_path / "scores.parquet", [{"prompt": "x", "responses": ["a", "b"], "scores": [1.0, 2.0]}]
    )
    config = tiny_farm.settings("best_of_n", tmp_path, scored=str(tmp_path / "scores.parquet"))
    assert_all_read("best_of_n", reads(best_of_n.run, config, str(tmp_path / "best")))


def test_inspect_data_reads_every_field(farm, tmp_path):
    config = tiny_farm.settings("inspect_data", farm, **{"data.rows": 20})
    assert_all_read("inspect_data", reads(inspect_data.run, config, str(tmp_path)))


def test_weight_diff_reads_every_field(farm, tmp_path):
    sft, rm = (str(farm / name / "export") for name in ("sft", "reward_model"))
    made = tiny_farm.settings("weight_diff", farm, base=sft, target=sft)
    read = reads(weight_diff.run, made, str(tmp_path))
    diff = {"base": sft, "target": "", "diff": str(tmp_path / "diff")}
    read |= reads(weight_diff.run, tiny_farm.settings("weight_diff", farm, **diff), str(tmp_path))
    assert_all_read("weight_diff", read)
    again = tiny_farm.settings("weight_diff", farm, base=sft, target=rm)  # a classifier on a language model
    reads(weight_diff.run, again, str(tmp_path / "reward_model"))


@pytest.fixture(scope="module")
def outputs(farm, tmp_path_factory):
    """Files of outputs of two methods on the same instructions, and the baseline's."""
    folder, paths = tmp_path_factory.mktemp("outputs"), {}
    rows = read_table(farm / "val_pairs/outputs.parquet")
    for name, k in (("sft", 0), ("dpo", 1), ("reference", 0)):
        texts = [row["outputs"][k] + "!" * (name == "reference") for row in rows]
        paths[name] = folder / f"{name}.parquet"
        plain = [{n: row[n] for n in ("instruction", "input")} for row in rows]
        write_parquet(
            paths[name], [r | {"output": t, "generator": name} for r, t in zip(plain, texts, strict=True)]
        )
    return paths


def test_annotate_reads_every_field(farm, outputs, tmp_path):
    local = {"judges": str(tiny_farm.ROOT / "configs/judges/micro_clean.yaml")}
    read = reads(annotate.run, tiny_farm.settings("annotate", farm, **local), str(tmp_path / "samples"))
    sides = {"outputs_1": str(outputs["sft"]), "outputs_2": str(outputs["dpo"])}
    head2head = tiny_farm.settings("annotate", farm, "head2head", **local, **sides)
    read |= reads(annotate.run, head2head, str(tmp_path / "head2head"))
    for variant in ("ratings", "rankings", "completions"):
        page = tiny_farm.settings("annotate", farm, variant)
        read |= reads(annotate.run, page, str(tmp_path / variant))
    judged = {"feedback": str(tmp_path / "rankings/feedback.trl.jsonl"), "feedback_format": "trl"}
    convert = tiny_farm.settings("annotate", farm, "convert", **judged)
    assert_all_read("annotate", read | reads(annotate.run, convert, str(tmp_path / "convert")))
    assert len(read_table(tmp_path / "samples/labels.parquet")) == 12
    assert {row["kind"] for row in read_table(tmp_path / "ratings/labels.parquet")} == {"rating"}
    scored = read_table(tmp_path / "ratings/feedback.rrhf.jsonl")
    assert all(len(row["responses"]) == len(row["scores"]) == 2 for row in scored)
    assert len(read_table(tmp_path / "convert/labels.parquet")) == len(read_table(judged["feedback"]))
    outputs_read, dropped = read_instructions(tmp_path / "completions/outputs.json")
    assert outputs_read and not dropped


def test_evaluate_reads_every_field(farm, outputs, tmp_path):
    changes = {
        "outputs": f"sft={outputs['sft']},dpo={outputs['dpo']}",
        "baseline": str(outputs["reference"]),
        "judges": str(tiny_farm.ROOT / "configs/judges/micro_clean.yaml"),
        "labels": "",
        "scored": "",
        "runs": "",
    }
    config = tiny_farm.settings("evaluate", farm, **changes)
    assert_all_read("evaluate", reads(leaderboard_job.run, config, str(tmp_path)))


def test_measure_reads_every_field(tmp_path):
    said = {"instruction": "i", "output_1": "a", "output_2": "b", "generator_1": "x", "generator_2": "y"}
    write_parquet(tmp_path / "labels.parquet", [said | {"preference": k} for k in (1.0, 2.0)])
    write_parquet(tmp_path / "rated.parquet", [{"instruction": "i", "output": "a", "rating": 3}])
    labels, rated = str(tmp_path / "labels.parquet"), str(tmp_path / "rated.parquet")
    changes = {"games": labels, "annotators": f"m={labels}", "gold": labels, "n_bootstrap": 5}
    changes |= {"ratings": f"m={rated}", "baseline": rated}
    config = load_page(str(tiny_farm.ROOT / "configs/measure.py"))
    config.update(changes)
    read = reads(measure_job.run, config, str(tmp_path / "out"))
    pair = {"question": "i", "response_A": "a", "response_B": "b", "label": "A>B"}
    write_parquet(tmp_path / "pairs.parquet", [pair])
    both = said | {
        "order": "both",
        "preference": 1.5,
        "preference_first_order": 1.0,
        "preference_swapped": 2.0,
    }
    write_parquet(tmp_path / "both.parquet", [both, both | {"instruction": "j", "output_2": "long " * 9}])
    (tmp_path / "humans.csv").write_text("model,score\nx,1\ny,2\n")
    both = str(tmp_path / "both.parquet")
    changes = {"games": "", "benchmark": str(tmp_path / "pairs.parquet"), "benchmark_labels": f"m={both}"}
    changes |= {"arena": both, "style": ("length",), "reference": str(tmp_path / "humans.csv")}
    config = load_page(str(tiny_farm.ROOT / "configs/measure.py"))
    config.update(changes)
    assert_all_read("measure", read | reads(measure_job.run, config, str(tmp_path / "benchmarks")))


def test_make_data_reads_every_field(farm, tmp_path):
    read = reads(make_data.run, tiny_farm.settings("make_data", farm), str(tmp_path / "world"))
    own = tiny_farm.settings("make_data", farm, instructions=str(farm / "data/sft.parquet"))
    assert_all_read("make_data", read | reads(make_data.run, own, str(tmp_path / "own")))
