"""The verdict before the weights: does a model load and run here, or on a described target?"""

from persistlib.compat.manifests import Report, Target, check_manifest, parse_target

__all__ = ["Report", "Target", "check_manifest", "parse_target"]
