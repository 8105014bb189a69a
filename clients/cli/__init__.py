"""The command line: `keyside`, one module for each group of commands."""
