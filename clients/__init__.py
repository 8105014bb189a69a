"""The Python client, blocking and asyncio, and the command line."""
