"""Several processes: torchrun's variables, how they meet, and what they say to each other."""
