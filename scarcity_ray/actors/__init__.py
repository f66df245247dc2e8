"""The four kinds of actor as plain classes: basket, directory, global aggregator, accountant."""
