"""What several experiments share; `README.md` tells what each module is for.

A script puts `experiments/` on the module path before it imports from here, so that it runs from any folder.
"""
