"""Kernels that LLVM compiles in memory (the extra ``fast``); without it, NumPy and BLAS do the same work."""
