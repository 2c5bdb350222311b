"""Folders of pictures that commands write one by one and can resume."""
