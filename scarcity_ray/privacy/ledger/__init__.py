"""The ledger: a budget's charges, chained, kept in a file or a database."""
