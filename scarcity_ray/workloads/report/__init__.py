"""What a run shows: its page, its charts and its words."""
