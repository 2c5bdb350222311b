"""Programs for those who work on colddiff."""
