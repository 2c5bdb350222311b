"""Several processes: torchrun's variables, and what processes say to each other."""
