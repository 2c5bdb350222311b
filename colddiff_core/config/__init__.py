"""Configurations: declared values, sections and TOML presets; free of torch."""
