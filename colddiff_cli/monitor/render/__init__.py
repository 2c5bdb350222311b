"""Text and frames, drawn without a screen."""
