"""Reads, fuses and writes one scene, or folders of scenes."""
