"""One module a file format; imported as `persistlib.converters`."""
