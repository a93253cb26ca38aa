"""What the report page shows, as data (Python), and the page that shows it (HTML, CSS and scripts beside it)."""

from pathlib import Path

ASSETS = Path(__file__).parent
