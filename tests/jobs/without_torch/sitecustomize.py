"""Processes that tests start do without torch, as users do; transformers loads it where it can, for two seconds."""

import sys
from importlib.machinery import PathFinder


class WithoutTorch(PathFinder):
    """Finds everything else. An entry None in sys.modules would do for imports, but SciPy looks there, too."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname == "torch" else super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
