# Do not change this file: it is made from clients/_async/__init__.py by tools/unasync.py.
"""The blocking client."""
