"""Your competition's own code: how a row is read, the network, the losses and the metric.

docs/extend.md explains what you can replace. foldwise/ is the template's machinery; don't edit it.
"""
