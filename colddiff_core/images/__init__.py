"""Image files, pixels and contact sheets."""
