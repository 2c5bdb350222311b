"""Start processes and open runs."""
