"""Graphs derived from a graph: in half precision, with weights of half the size, in int8."""
