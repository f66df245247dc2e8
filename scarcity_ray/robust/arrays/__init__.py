"""Arrays of rows: column blocks, scratch memory, mixed rows, sorting networks."""
