"""RRHF's candidates: four responses of diverse beam search to each prompt of Dahoas/rm-static.

    hf download Dahoas/rm-static --repo-type=dataset --local-dir=Dahoas/rm-static
    python -m rlhf_jax.main --config=configs/papers/rrhf/generate.py --workdir=runs/rrhf/sampled

Hardware: eight accelerators; the model is 13 GB in bfloat16.
Time: they publish none; not run to its end here.
Result: trained on these (D) reward -1.08, on the provided ones (P) -1.31, on both -1.02; plain beams with both -1.03
(Yuan et al. 2023, table of sampling policies).
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import sibling


def get_config() -> ConfigDict:
    c = sibling(__file__, "../../generate")
    c.model.path = "runs/rrhf/alpaca_7b/export"
    c.model.name = "alpaca_7b"
    c.model.dtype = "bfloat16"
    c.data.prompts = "Dahoas/rm-static:train"
    c.data.max_prompt_length = 256
    c.data.too_long = "cut_prompt"
    c.samples = 4
    c.beams = 4
    c.beam_groups = 4
    c.diversity_penalty = 1.0
    c.batch_size = 256
    c.max_new_tokens = 128
    c.mesh.fsdp = 8
    return c
