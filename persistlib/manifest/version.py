"""The version of the manifest's schema; how it is raised stands in `docs/manifest.md`."""

VERSION = "1.0"
MAJOR, MINOR = map(int, VERSION.split("."))
