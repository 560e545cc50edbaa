"""Attention behind one function: blockwise, square, and the kernels of GPUs and TPUs."""
