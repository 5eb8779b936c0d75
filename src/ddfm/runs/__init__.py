"""One scene, and whole folders of them: read, fused, written."""
