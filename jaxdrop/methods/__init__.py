"""The methods, with one family per file. Families do not import each other."""
