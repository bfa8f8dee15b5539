"""What this competition needs of its own."""
