"""Expert iteration: what its page's rounds read and train, and that a study which was killed in a round goes on."""

import shutil

import numpy as np
import pytest
import tiny_farm

from rlhf_jax.data.files.tables import read_rows
from rlhf_jax.jobs.study import study_job
from rlhf_jax.jobs.study.study_stages import plan_stages
from rlhf_jax.models.huggingface import load
from rlhf_jax.programs import check_values
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.settings import load_page, module_beside
from rlhf_jax.training.run import offline

ROUND = ("samples", "scores", "best", "sft")


class KilledError(BaseException):
    """Ends a study in the middle of a stage."""


def page_of(variant=""):
    return load_page(f"{tiny_farm.ROOT}/configs/expert_iteration.py" + (f":{variant}" if variant else ""))


@pytest.mark.parametrize(
    ("variant", "trained"), [("", "runs/farm/sft/export"), ("continued", "{round_1/sft}/export")]
)
def test_each_round_samples_what_the_last_one_made(variant, trained):
    page = page_of(variant)
    check_values(page)
    stages = {stage.name: stage for stage in plan_stages(page, "/w")}
    first, second = ({part: stages[f"round_{r}/{part}"].written for part in ROUND} for r in (1, 2))
    assert first["samples"].model.path == first["sft"].model.init == "runs/farm/sft/export"
    assert second["samples"].model.path == "{round_1/sft}/export" and second["sft"].model.init == trained
    for r, this in ((1, first), (2, second)):
        assert this["scores"].data.responses == f"{{round_{r}/samples}}/outputs.parquet"
        assert this["best"].scored == f"{{round_{r}/scores}}/scores.parquet"
        assert this["sft"].data.train == f"{{round_{r}/best}}/rows.parquet"
    assert stages["evaluate"].config.outputs.count("outputs.parquet") == 4


def test_later_rounds_take_the_settings_of_the_first_and_other_seeds():
    page = page_of()
    page.seed, page.samples.samples, page.samples.data.rows, page.distributed = 5, 7, 11, "off"
    assert (page.samples.seed, page.samples_2.seed, page.sft.seed) == (5, 6, 5)
    assert (page.samples_2.samples, page.samples_2.data.rows, page.samples_2.distributed) == (7, 11, "off")


def test_a_page_of_ones_own_has_as_many_rounds_as_it_likes(tmp_path):
    page = module_beside(str(tmp_path / "mine.py"), "expert_iteration").rounds_of(4, continued=True)
    stages = {stage.name: stage for stage in plan_stages(page, "/w")}
    assert stages["round_4/sft"].upstream == ("round_3/sft", "round_4/best")
    page.samples.samples = 3
    assert [page[f"samples_{r}"].samples for r in (2, 3, 4)] == [3, 3, 3]


def small(farm):
    """The rounds alone, on the tiny farm, a few steps each."""
    page = page_of("smoke")
    for group in [name for name in page if hasattr(page[name], "job")]:
        for field, text in tiny_farm.flat(page[group]).items():
            if isinstance(text, str) and text.startswith("runs/farm/"):
                page[group].update_from_flattened_dict({field: text.replace("runs/farm", str(farm))})
    page.stages = tuple(
        tuple(x.replace("runs/farm", str(farm)) for x in stage)
        for stage in page.stages
        if stage[0][:5] == "round"
    )
    page.report = ""
    page.samples.update_from_flattened_dict(tiny_farm.SMALL["generate"])
    page.samples.samples, page.samples.data.rows = 2, 12
    page.scores.data.max_length, page.scores.batch_size = 112, 8
    page.sft.update_from_flattened_dict(
        {"data.max_length": 96, "logprob_chunk": 16, "batch_size": 4, "epochs": 2.0, "data.eval_rows": 4}
        | {"save_every": 2, "eval_every": 0, "log_every": 1}
    )
    return page


def test_a_study_killed_twice_in_its_second_round_ends_with_the_same_model(
    farm, tmp_path, monkeypatch, capsys
):
    page, folder, alive = small(farm), tmp_path / "study", {"samples": 2, "rows": 3}
    sample, rows = DecodeGenerator.generate, offline.row_indices

    def generate(self, tokens, lengths, numbers, key):
        if (folder / "round_2/samples").exists() and alive["samples"]:
            alive["samples"] -= 1
            if not alive["samples"]:
                raise KilledError
        return sample(self, tokens, lengths, numbers, key)

    def row_indices(step, *args):
        if (folder / "round_2/sft").exists() and step == alive["rows"]:
            raise KilledError
        return rows(step, *args)

    monkeypatch.setattr(DecodeGenerator, "generate", generate)
    monkeypatch.setattr(offline, "row_indices", row_indices)
    with pytest.raises(KilledError):  # while its second batch is sampled
        study_job.run(page, str(folder))
    assert (folder / "round_1/sft/finished.json").is_file() and not (
        folder / "round_2/samples/outputs.parquet"
    ).exists()
    capsys.readouterr()
    with pytest.raises(KilledError):  # after its SFT has written a checkpoint
        study_job.run(page, str(folder))
    out = capsys.readouterr().out
    assert all(f"[{i}] round_1/{part}: finished before" in out for i, part in enumerate(ROUND))
    assert [x.name for x in (folder / "round_2/sft/checkpoints").iterdir()] == ["2"]
    alive["rows"] = -1
    shutil.copytree(folder, tmp_path / "whole")
    study_job.run(page, str(folder))
    out = capsys.readouterr().out
    assert all(f"round_2/{part}: finished before" in out for part in ROUND[:3]) and "continuing" in out
    # The same stage of a copy without what was begun, so that it is trained in one go.
    shutil.rmtree(tmp_path / "whole/round_2/sft")
    study_job.run(page, str(tmp_path / "whole"))
    assert capsys.readouterr().out.count("finished before") == 7
    (_, once), (_, again) = (load(x / "round_2/sft/export") for x in (tmp_path / "whole", folder))
    np.testing.assert_array_equal(once["embed"], again["embed"])
    np.testing.assert_array_equal(once["head"], again["head"])
    # The second round was sampled from what the first one had made, and learnt the best of it.
    _, start = load(farm / "sft/export")
    assert not np.array_equal(start["embed"], once["embed"])
    best = read_rows(folder / "round_2/best/rows.parquet")
    scored = read_rows(folder / "round_2/scores/scores.parquet")
    # Random weights write a response or two that no text holds, which has no score.
    known = [[x for x in row["scores"] if x is not None] for row in scored]
    assert len(best) > 8 and [row["score"] for row in best] == [max(scores) for scores in known if scores]
