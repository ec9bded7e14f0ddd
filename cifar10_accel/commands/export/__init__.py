"""The command `export` (`command.py`), and a writer for each format."""
