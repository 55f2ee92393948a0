"""Functions that take a function, such as a drop `(key, x) -> y`, and schedules for rates."""
