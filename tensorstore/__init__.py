"""The contract in Python: dtypes, the npy codec, key names, wire codec, records, commands, errors.

Nothing here does I/O, and nothing here imports another part of Keyside.
"""
