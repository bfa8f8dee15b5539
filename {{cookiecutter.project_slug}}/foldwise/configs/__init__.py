"""The library of choices, a folder a group; the owner's `configs/` come first. A package, so that Hydra finds it."""
