"""What rules look at: norms of rows, distances between them, order statistics of their columns."""
