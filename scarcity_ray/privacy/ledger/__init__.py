"""The ledger: a budget's charges, recorded in a hash chain before they are allowed.

::

    budget       an accountant with a ledger: check, record durably, then allow (answers: its return values)
    ledger       append-only rows, one writer at a time (holder: who that is, according to the rows)
    events       what a row records, a frozen type for each kind
    chain        a row: an event with its number, writer and time, sealed with the hash of all rows before
    replay       from rows to the accountant that they describe, and to plain data
    store        what the ledger asks of the place where its rows are kept
    sqlite       a file (file_access: whose folder it is in, and the lock beside it)
    postgres     a PostgreSQL database
"""
