"""From the plan to the masked graph: insert gates, then remove the redundant ones."""
