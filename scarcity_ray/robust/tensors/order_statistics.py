"""Order statistics of a tensor's columns, and the mean of a window of them (`measures.order_statistics`).

Guarantees:
    Values are those of NumPy's rows, to what float64 sums in another order lose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scarcity_ray.robust.measures.order_statistics import Window


def window_mean(tile: Tensor, window: Window) -> Tensor:
    """The mean of a window of each sorted column of (m, b), summed in float64; (b,) float64."""
    ascending = torch.sort(tile, dim=0).values
    count = window.stop - window.start
    if not window.around_median:
        return ascending[window.start : window.stop].sum(dim=0, dtype=torch.float64) / count
    start = _first_rank(ascending, count)
    ranks = torch.arange(len(ascending), device=tile.device)[:, None]
    outside = (ranks < start) | (ranks >= start + count)
    return ascending.masked_fill_(outside, 0.0).sum(dim=0, dtype=torch.float64) / count


def window_ends(tile: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The least and the largest value of that window, (1, b) each."""
    ascending = torch.sort(tile, dim=0).values
    if not window.around_median:
        return ascending[window.start, None], ascending[window.stop - 1, None]
    start = _first_rank(ascending, window.stop - window.start)
    return ascending.gather(0, start), ascending.gather(0, start + window.stop - window.start - 1)


def _first_rank(ascending: Tensor, count: int) -> Tensor:
    """The first of the `count` ranks closest to the median, (1, b).

    It is the number of ranks i with x_i + x_(i + count) < 2 m: as the columns ascend, those come first
    (`measures.order_statistics.closest_to_median`).
    """
    num_rows = len(ascending)
    twice_median = ascending[(num_rows - 1) // 2].double() + ascending[num_rows // 2]
    closer = ascending[: num_rows - count].double() + ascending[count:] < twice_median
    return closer.sum(dim=0, keepdim=True)
