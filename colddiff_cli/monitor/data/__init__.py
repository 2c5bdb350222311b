"""What the dashboard reads of runs. Free of torch and Textual."""
