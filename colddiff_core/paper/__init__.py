"""The paper's tables: what they hold, and reproducing them."""
