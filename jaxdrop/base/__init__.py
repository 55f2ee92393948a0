"""What all rooms use: types, checks of arguments, names, sharding, versions of JAX."""
