"""The measures that rules use: norms of rows, distances between them, order statistics of their columns."""
