"""Keyside: tensors and models as keys in Redis or Valkey, executors beside them, clients in front."""

__version__ = "0.1.0"
