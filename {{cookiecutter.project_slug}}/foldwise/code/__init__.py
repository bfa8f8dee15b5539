"""The owner's code, `solution/`: what a run reaches, its hashes, its copy in the run, and how it is imported.

source                files in memory and in <run>/code, and whether they are trusted
syntax, imports       syntax trees and imports, also of foldwise/; which files a target reaches; executes nothing
effects, statements   what a top-level statement does, binds and uses
definitions           the definitions that targets reach, and their hashes
alias, build          importing a run's copy as `solution_<hash>`; from `_target_` to object
runs                  the copy in a run folder
"""
