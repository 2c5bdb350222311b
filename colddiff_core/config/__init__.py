"""Configurations: declared values, sections, presets in TOML. Free of torch."""
