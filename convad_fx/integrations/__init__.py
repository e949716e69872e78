"""Bridges to other packages, each imported only when its module is."""
