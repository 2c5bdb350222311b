"""Charts, text and frames, drawn without a screen."""
