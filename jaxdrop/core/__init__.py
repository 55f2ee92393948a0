"""The path from a key to a dropped activation: words, threshold, mask, apply."""
