"""What all rooms stand on: types, checks of arguments, names, sharding, JAX's versions."""
