"""RRHF in rounds: sample from the model, score, train; then again from the model that this has made.

    python -m rlhf_jax.main --config=configs/rrhf_iterated.py --workdir=runs/rrhf_iterated

Reads what the farm (configs/farm.py) has made: prompts with demonstrations, the SFT model and the reward model. Every
round ranks four new samples of each prompt beside its demonstration (the paper's iterated sampling; its results came
from two and three rounds). The models of all rounds are ranked beside the SFT model at the end. `:diverse_beams` takes
the paper's diverse beam search instead of samples, `:sampled` leaves the demonstrations out.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside, sibling

common = module_beside(__file__, "common")

ROUNDS = (1, 2)
ROWS = 2000  # Of the prompts, in every round.


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant, {"microfarm": microfarm, "diverse_beams": diverse_beams, "sampled": sampled}
    )


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "study"
    c.seed = 0  # Of every stage.
    common.seeds(c)
    common.processes(c)
    c.report = "evaluate"  # The stage whose table is shown at the end and whose report is copied; "": none.

    # The groups. A name in braces is the folder of that stage.
    c.provided = sibling(__file__, "score")  # The demonstrations that the prompts came with.
    c.provided.data.responses = "runs/farm/data/preference.parquet"
    c.provided.data.rows = ROWS
    c.sampled = sibling(__file__, "generate", "pairs")
    c.sampled.data.rows = ROWS
    c.sampled.samples = 4
    c.scores = sibling(__file__, "score")
    c.rrhf = sibling(__file__, "rrhf")
    c.outputs = sibling(__file__, "generate")
    c.evaluate = sibling(__file__, "evaluate")
    names = [f"round_{i}" for i in ROUNDS]
    c.evaluate.outputs = "sft=runs/farm/outputs/sft/outputs.parquet," + ",".join(
        f"{name}={{outputs/{name}}}/outputs.parquet" for name in names
    )
    c.evaluate.runs = ",".join(f"{name}={{{name}/rrhf}}" for name in names)
    c.evaluate.title = "iterated RRHF"

    c.stages = _stages("{provided}/scores.parquet")
    for name in ("sampled", "rrhf", "outputs", "evaluate"):
        c[name].seed = c.get_ref("seed")
    for name in ("provided", "sampled", "scores", "rrhf", "outputs"):
        c[name].distributed = c.get_ref("distributed")
    return c


def diverse_beams() -> ConfigDict:
    c = microfarm()
    c.sampled.beams = 4
    c.sampled.beam_groups = 4
    c.sampled.diversity_penalty = 1.0
    return c


def sampled() -> ConfigDict:
    c = microfarm()
    c.stages = _stages("")
    return c


def _stages(provided: str) -> tuple[tuple[str, ...], ...]:
    """Three stages a round, each from the model of the round before; provided: a file that is ranked in all of them."""
    stages = [("provided", "provided")] if provided else []
    model = "runs/farm/sft/export"
    for i in ROUNDS:
        here, files = f"round_{i}", f"{{round_{i}/scores}}/scores.parquet"
        stages += [
            (f"{here}/sampled", "sampled", f"model.path={model}"),
            (f"{here}/scores", "scores", f"data.responses={{{here}/sampled}}/outputs.parquet"),
            (
                f"{here}/rrhf",
                "rrhf",
                f"data.train={files},{provided}" if provided else f"data.train={files}",
                f"model.init={model}",
            ),
        ]
        model = f"{{{here}/rrhf}}/export"
    for i in ROUNDS:
        own = (f"model.path={{round_{i}/rrhf}}/export", f"model.name=round_{i}")
        stages.append((f"outputs/round_{i}", "outputs", *own))
    return (*stages, ("evaluate", "evaluate"))
