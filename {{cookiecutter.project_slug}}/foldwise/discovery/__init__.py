"""Looks at a competition's folder as it was unpacked, and writes the data configuration that reads it."""
