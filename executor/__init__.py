"""Processes beside a shard that take jobs, run models, and write the results back."""
