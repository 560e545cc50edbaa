"""Model folders in Hugging Face's layout: `load` takes one in, `save_folder` writes one."""

from rlhf_jax import offered

__getattr__ = offered(__name__, load="import_folder", save_folder="export_folder")
