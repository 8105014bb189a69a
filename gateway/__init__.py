"""Doors for those who do not speak FCALL: none is built yet (docs/ROADMAP.md)."""
