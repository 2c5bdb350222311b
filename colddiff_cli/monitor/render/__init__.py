"""Rich text for the panes, and frames printed without a screen."""
