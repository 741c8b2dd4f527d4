"""Save, verify and load fine-tuned models."""
