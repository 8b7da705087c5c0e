"""The frozen language model: loading it, reading text with it, and hanging adapters on it."""
