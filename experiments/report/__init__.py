"""Tables (Markdown, LaTeX, CSV) and their notes, figures, the HTML page, packs of records."""
