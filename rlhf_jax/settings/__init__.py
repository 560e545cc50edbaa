"""Config pages: files of settings, their variants, and the command line's changes to them.

This is all that a page needs, ours or a user's own:

    from rlhf_jax.settings import load_page

    def get_config():
        c = load_page("configs/sft.py")
        c.epochs = 1.0
        return c
"""

from rlhf_jax.settings.pages import choose_variant, load_page, module_beside, sibling

__all__ = ["choose_variant", "load_page", "module_beside", "sibling"]
