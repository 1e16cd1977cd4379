"""The embedded lab: a synthetic world, a loopback server and small models trained on it.

Everything in here is invented. It exists so that the whole chain runs with no network, key or GPU.
"""
