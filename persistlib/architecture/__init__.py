"""Recipes of modules: found, built and compared; freezing; what is kept of a module's state."""
