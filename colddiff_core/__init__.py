"""colddiff: generalized ("cold") diffusion, after Bansal et al., NeurIPS 2022."""

__version__ = "0.1.0"
