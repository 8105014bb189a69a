"""Backends: what runs models of one kind (see `base`)."""
