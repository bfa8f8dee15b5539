"""The code of the owner, `solution/`: what a run reaches of it, its identity, its copy, and how it is imported.

source                files in memory and in <run>/code, and whether they are trusted
syntax, imports       modules and syntax trees, for foldwise/ too; the files that targets reach; nothing is executed
effects, statements   what a top-level statement does, binds and uses
definitions           the definitions that targets reach, and a hash of each
alias, build          importing a run's copy as `solution_<hash>`; from `_target_` to object
runs                  the copy that a run carries
"""
