"""How badly is this picture degraded? One estimator per kind of trace."""
