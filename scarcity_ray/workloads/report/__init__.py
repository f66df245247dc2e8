"""The report of a run: its page, its charts and its privacy claim."""
