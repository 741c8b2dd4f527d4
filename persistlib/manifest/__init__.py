"""The manifest: schema, strict reading, canonical writing, upgrades."""
