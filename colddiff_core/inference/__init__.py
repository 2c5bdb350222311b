"""Using a trained run: restore, generate, photographs."""
