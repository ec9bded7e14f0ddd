"""The table of all runs: filters, order and output."""
