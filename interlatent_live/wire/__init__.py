"""The wire: what travels between processes, how it is written, counted, limited and protected.

``codec`` and ``messages`` say what a message is, ``ledger``, ``credit`` and ``link`` are the pure
state machines of a connection, ``sockets`` and ``security`` the thin layer that touches ZeroMQ.
docs/wire.md specifies all of it for writers of agents in other languages.
"""
