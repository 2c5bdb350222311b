"""The paper's tables: their definition and reproduction."""
