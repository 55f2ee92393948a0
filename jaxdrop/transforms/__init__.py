"""Functions of functions: they take any drop `(key, x) -> y`."""
