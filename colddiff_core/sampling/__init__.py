"""Samplers and priors."""
