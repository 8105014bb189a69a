"""Events that start runs: channels, streams, schedules and foreign writes, followed for one node at a time."""
