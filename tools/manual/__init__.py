"""The manual: its generated pages and figures. `mkdocs build --strict` calls `hooks`; no number is typed twice."""
