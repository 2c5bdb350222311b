"""Use a trained run: restore, generate, restore photographs."""
