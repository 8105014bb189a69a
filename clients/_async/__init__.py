"""The asyncio client: the source of both."""
