"""What outlives a process: snapshots of state, and the journal of accepted updates."""
