"""Integrations with other packages; each module imports only its own package."""
