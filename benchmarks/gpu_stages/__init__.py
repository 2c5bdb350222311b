"""The stages of benchmarks/gpu.py: each measures one thing on a GPU, in its own process."""
