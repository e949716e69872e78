"""From a trained module to a graph of known operations."""
