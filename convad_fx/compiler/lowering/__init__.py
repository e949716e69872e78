"""From the masked graph to graphs that compute less: boxes, patches, tiles."""
