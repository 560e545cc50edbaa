"""Model folders in Hugging Face's layout, taken in and written; `load` takes one in."""

from rlhf_jax import offered

__getattr__ = offered(__name__, load="import_folder")
