"""The studies of configs/studies: their pages plan, read only their own stages, and speak of what they measure."""

import re
from functools import lru_cache

import pytest
import tiny_farm

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.published_claims import read_publication
from rlhf_jax.jobs.study.study_stages import plan_stages
from rlhf_jax.programs import check_values
from rlhf_jax.settings import load_page

CONFIGS = tiny_farm.ROOT / "configs"
STUDIES = sorted(path.stem for path in (CONFIGS / "studies").glob("*.py") if path.stem != "base")
SIZES = ("", ",quick", ",smoke")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(tiny_farm.ROOT)


@lru_cache
def planned(spec):
    page = load_page(f"configs/study.py:{spec}")
    check_values(page)
    return page, {stage.name: stage for stage in plan_stages(page, "W")}


@pytest.mark.parametrize("spec", [f"{study}{size}" for study in STUDIES for size in SIZES])
def test_a_study_plans_and_reads_only_what_it_makes(spec):
    page, stages = planned(spec)
    for name, stage in stages.items():
        for field, value in tiny_farm.flat(stage.config).items():
            assert "runs/" not in str(value), (name, field)
            assert not re.search(r"[{}]", str(value)), (name, field)
    # What is shown at the end is the last stage, which has read results of all seeds.
    last = list(stages)[-1]
    assert page.report == last == spec.partition(",")[0] and stages[last].config.job == "compare"
    for seed in page.seeds:
        assert any(name.startswith(f"seed_{seed}/") for name in stages[last].upstream)


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_measures_what_its_claims_are_about(study):
    _, stages = planned(study)
    config, publication = stages[study].config, read_publication(f"configs/studies/{study}.yaml")
    named = {item.partition("@")[0] for item in config.results.split(",")}
    assert named == set(publication.tables) - {"runs"}  # Which is what the runs have logged.
    # Every row of the file is a name that some stage gives to what it writes.
    given = {"reference", "ratings against rankings"}
    for stage in stages.values():
        for field in ("outputs", "runs", "scored"):
            value = stage.config.get(field, "")
            given |= {item.partition("=")[0] for item in str(value).split(",")}
    assert set(publication.rows) <= given
    for claim in publication.claims:
        assert claim.kind == "spearman" or set(claim.of) <= set(publication.rows)


def test_studies_share_the_stages_that_they_list_alike():
    """In one workdir what two of them list by one name is one stage, so it has to be the same in both."""
    seen = {}
    for study in STUDIES:
        for name, stage in planned(study)[1].items():
            written = tiny_farm.flat(stage.written)
            if name in seen and seen[name][1] != written:
                different = {
                    k: (v, seen[name][1].get(k)) for k, v in written.items() if v != seen[name][1].get(k)
                }
                pytest.fail(f"{name} of {study} is not that of {seen[name][0]}: {different}")
            seen[name] = (study, written)
    assert "seed_0/labels_clean" in seen and "seed_0/ppo" in seen


def test_a_size_that_there_is_not_is_refused():
    for spec, said in (
        ("table2,fast", "no variant 'fast'"),
        ("microfarm,quick", "no variant 'microfarm,quick'"),
    ):
        with pytest.raises(UserError, match=said):
            load_page(f"configs/study.py:{spec}")
