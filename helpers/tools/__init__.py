"""For those who prepare, serve and publish: the modules ready, offline_kit, rendered_edition and processes.

Nothing is imported here, so that `ready` works on a laptop that lacks every package.
"""
