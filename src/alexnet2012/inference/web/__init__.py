"""HTTP server, templates, style and script of the pages that show predictions."""
