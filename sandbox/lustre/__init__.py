"""A double of Lustre's ``lfs`` and of the archive behind it; :mod:`sandbox.lfs` installs it.

The modules here run as short commands that are started hundreds of times by pollers, on an interpreter without
site-packages: standard library only, and of that only what starts fast (no dataclasses, typing or subprocess).
"""
