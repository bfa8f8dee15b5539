"""What this competition changes: how a row is read, what the network does, what the losses are, how it is scored.

Everything else is the machinery in foldwise/, which nobody edits. docs/extend.md shows what is meant to be swapped.
"""
