"""Bundles: built the same to the byte, signed, verified before anything is written, released.

Import the modules by name: a board without `cryptography` still reads manifests and archives.
"""
