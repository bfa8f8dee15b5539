"""The code of the owner, `solution/`: what a run reaches of it, its identity, its copy, and how it is imported.

imports, syntax       modules and syntax trees, for foldwise/ too        standard library only, nothing is executed
collect, source       the files that targets reach, in memory or in <run>/code
scopes, definitions   which definitions they reach, and a hash of each
alias, trust          importing a run's copy as `solution_<hash>`, if it was made here
build                 from `_target_` to object
"""
