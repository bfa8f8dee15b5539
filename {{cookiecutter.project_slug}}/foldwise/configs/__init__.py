"""The library of choices, one folder per group. A package, so that Hydra finds it."""
