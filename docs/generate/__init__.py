"""The pages of the site that are made from the code: methods, fixed recipes, compositions, commands, and the
documents that lie outside `docs/`.

`pages.pages()` is all of them. `write.py` hands them to MkDocs, and tests read them without it.
"""
