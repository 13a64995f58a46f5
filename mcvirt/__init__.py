"""The words that both ends speak: errors, permissions, names, units, types, contracts and the wire."""

__version__ = "12.0.0"
