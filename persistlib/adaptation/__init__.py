"""A model changed to fit another task while it is loaded: classes, channels, image size, names.

Nothing is changed in silence: what was done stands in a record that the caller gets, and in the
lineage of the bundle that the adapted model is saved as.
"""
