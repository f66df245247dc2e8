"""Rows that are PyTorch's tensors, aggregated on the device where they lie.

`detection` says which rows are, without importing torch; `kernels` computes on them, by `order_statistics`
where columns are sorted, and both import it.
"""
