"""Tables (Markdown, LaTeX, CSV) and their notes, which figures there are, the HTML page, packs of records."""
