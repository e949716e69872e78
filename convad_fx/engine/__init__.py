"""Many masks through one network, each by the cheapest execution strategy."""
