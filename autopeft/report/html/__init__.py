"""A run as one HTML file that needs nothing else: no network, no server, no other file.

`write_report` reads a run folder, finished or not, and writes the page. What a run does not have is said in
one sentence. Everything in a run folder is a stranger's text: it is escaped, and a content security policy
allows only the page's own two scripts, by their hashes.
"""

from __future__ import annotations

from autopeft.report.html.page import render_report, write_report

__all__ = ["render_report", "write_report"]
