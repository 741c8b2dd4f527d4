"""Telling what a weights file holds, and which model it belongs to, from its headers alone."""
